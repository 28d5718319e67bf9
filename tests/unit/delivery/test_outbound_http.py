"""What a customer's URL may make this service connect to, and what a server may make it do."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import outbound_http
from relay.delivery.outbound_http import Outbound, RefusedUrlError, UnavailableError, checked, routable
from tests.support.certificates import write_pair


def ask(outbound: Outbound, url: str, *, seconds: float = 5.0) -> tuple[int, bytes]:
    content = bytearray()

    def receive(_status: int, octets: bytes) -> bool:
        content.extend(octets)
        return len(content) < 1000

    return outbound.request("POST", url, {}, b"body", receive=receive, seconds=seconds), bytes(content)


@pytest.fixture
def _unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, **__: Any) -> socket.socket:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "create_connection", connect)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x.example/a",
        "file:///etc/passwd",
        "//x.example/a",
        "https://user@x.example/a",
        "https://user:secret@x.example/a",
        "https://user@bücher.example/a",
        "https://@x.example/a",
        "http://localhost/a",
        "http://a.localhost./a",
        "http://db.internal/a",
        "http://x.cluster.local/a",
        "http://printer.local/a",
        "http://x.example:22/a",
        "http://x.example:99999/a",
        "http://[::1",
        "http://x.example\\@127.0.0.1/a",
        "http://127.0.0.1\\.x.example/a",
        "http://x.example/a\r\nHost: y.example",
        "http://x.example/" + "a" * 9000,
        " " * 5000 + "http://x.example/" + "a" * 5000,
        "http://x_.\u2488.example:x/",
        "http://①②⑦.0.0.1/a",
        "http://ⓛocalhost/a",
        "http://[::127.0.0.1]/a",
        "http://[::ffff:0:7f00:1]/a",
        "http://[2001:0:7f00:1::]/a",
        "http://[100::1]/a",
        "http://198.18.0.1/a",
        "http://192.0.2.1/a",
        "http://127.0.0.1/a",
        "http://127.1/a",
        "http://0/a",
        "http://0x/a",
        "http://127.0.0.1./a",
        "http://127.0x1/a",
        "http://0300.0250.1.1/a",
        "http://3232235777/a",
        "http://0xc0.0xa8.1.1/a",
        "http://8.8.2056/a",
        "http://%31%32%37.0.0.1/a",
        "http://192.88.99.1/a",
        "http://168.63.129.16/machine",
        "http://100.100.100.200/latest/meta-data/",
        "http://192.0.0.192/latest/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://[fd00:ec2::254]/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/a",
        "http://[::ffff:a9fe:a9fe]/a",
        "http://[64:ff9b:1::a00:1]/a",
        "http://[64:ff9b::a9fe:a9fe]/a",
        "http://[2002:a9fe:a9fe::]/a",
        "http://[2001:db8::1]/a",
        "http://[3fff::1]/a",
        "http://x.example:0/a",
        "http://x.example:25/a",
        "http://x.example:1023/a",
        "http://x.example:-80/a",
        "http://x.example /a",
        "gopher://x.example/a",
        "http:x.example",
        "http:///x.example",
        "http://2130706433/a",
        "http://0x7f000001/a",
        "http://0177.0.0.1/a",
        "http://0.0.0.0/a",
        "http://10.0.0.1/a",
        "http://172.16.0.1/a",
        "http://192.168.1.1/a",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/a",
        "http://224.0.0.1/a",
        "http://255.255.255.255/a",
        "http://[::]/a",
        "http://[::1]/a",
        "http://[::ffff:127.0.0.1]/a",
        "http://[::ffff:10.0.0.1]/a",
        "http://[2002:7f00:1::]/a",
        "http://[64:ff9b::7f00:1]/a",
        "http://[fc00::1]/a",
        "http://[fe80::1%25lo]/a",
        "http://[ff02::1]/a",
        "http://[2001:470:1::5efe:7f00:1]/a",
        "http://[2001:470:1::200:5efe:a00:1]/a",
        "http://[::ffff:7f00:1]/a",
        "http://[::1%lo]/a",
        "http://[v1.x]/a",
        "http://x.example[2606:4700::1]/a",
        "http://[2606:4700::1]x:80/a",
        "http://[2606:4700::1] x/a",
        "http://x.example:80:80/a",
        "http://x.example:+80/a",
        "http://x.example:\uff1080/a",
        "http://x.example../a",
        "http://.x.example/a",
        "http://user%40x.example/a",
        "http://0x7f.1./a",
        "http://127\u30020\u30020\u30021/a",
        "http://loc\u00adalhost/a",
        "http://internal/a",
        "http://local./a",
        "http://x.example:022/a",
    ],
)
@pytest.mark.usefixtures("_unconnected")
def test_what_is_never_asked(url: str) -> None:
    """For its text, or because each name here leads to a private address."""

    def resolve(host: str, port: int) -> list[str]:
        try:
            return [str(info[4][0]) for info in socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)]
        except OSError:
            return ["10.0.0.1"]

    with pytest.raises(RefusedUrlError):
        ask(Outbound(resolve=resolve), url)


@pytest.mark.usefixtures("_unconnected")
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://user@x.example/a", "user information"),
        ("https://user:secret@x.example/a", "user information"),
        ("https://@x.example/a", "user information"),
        ("https://user@bücher.example/a", "user information"),
        ("http://localhost/a", "a private name"),
        ("http://a.localhost./a", "a private name"),
        ("http://db.internal/a", "a private name"),
        ("http://metadata.google.INTERNAL/a", "a private name"),
        ("http://x.cluster.local/a", "a private name"),
        ("http://printer.local/a", "a private name"),
        ("http://ⓛocalhost/a", "a private name"),
        ("http://x.example:0/a", "a reserved port"),
        ("http://x.example:22/a", "a reserved port"),
        ("http://x.example:25/a", "a reserved port"),
        ("https://x.example:1023/a", "a reserved port"),
        ("http://127.1/a", "an address in an unusual notation"),
        ("http://0x7f000001/a", "an address in an unusual notation"),
        ("http://2130706433/a", "an address in an unusual notation"),
        ("ftp://x.example/a", "neither http nor https"),
        ("http:///x.example", "neither http nor https"),
        ("http://x.example\\@127.0.0.1/a", "not a URL"),
        ("http://%31%32%37.0.0.1/a", "an address in an unusual notation"),
    ],
)
def test_what_is_refused_for_its_text_is_not_even_looked_up(url: str, reason: str) -> None:
    """Also where its name would lead to an address that is globally routable."""

    def resolve(_host: str, _port: int) -> list[str]:
        raise AssertionError("a look-up")

    with pytest.raises(RefusedUrlError) as refused:
        ask(Outbound(resolve=resolve), url)
    assert str(refused.value) == reason


@pytest.mark.usefixtures("_unconnected")
@pytest.mark.parametrize(
    "others", [["10.0.0.1"], ["::1"], ["::ffff:10.0.0.1"], ["64:ff9b::a00:1"], ["169.254.169.254"]]
)
def test_one_private_address_of_several_is_enough(others: list[str]) -> None:
    many = [f"93.184.216.{last}" for last in range(200)]
    for found in (
        ["93.184.216.34", *others],
        [*others, "93.184.216.34"],
        ["2606:2800:220:1::1", *others],
        many + others,
    ):
        with pytest.raises(RefusedUrlError):
            ask(Outbound(resolve=lambda _host, _port, found=found: found), "http://x.example/a")  # type: ignore[misc]


@pytest.mark.usefixtures("_unconnected")
def test_a_name_that_does_not_resolve_is_a_passing_failure() -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(UnavailableError, match="Temporary failure"):
        ask(Outbound(resolve=resolve), "http://x.example/a")


@given(st.integers(0, 2**32 - 1), st.sampled_from(["::ffff:0:0", "2002::", "64:ff9b::", "64:ff9b:1::"]))
def test_an_address_within_another_is_no_better_than_itself(number: int, prefix: str) -> None:
    """IPv4 addresses in IPv6 ones: mapped ones count as themselves, those of tunnels never."""
    inner = ipaddress.IPv4Address(number)
    shift = 80 if prefix == "2002::" else 0
    outer = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | number << shift)
    if prefix == "::ffff:0:0":
        assert routable(str(outer)) == routable(str(inner))
    else:
        assert not routable(str(outer))
    if not inner.is_global or inner.is_multicast:
        assert not routable(str(inner))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "{:#x}", "0{:o}", "{:#X}"]))
def test_an_address_has_one_notation(number: int, form: str) -> None:
    text = form.format(number)
    with pytest.raises(RefusedUrlError):
        checked(f"http://{text}/")
    first, rest = number >> 24, number & 0xFFFFFF
    with pytest.raises(RefusedUrlError):
        checked(f"http://{first}.{form.format(rest)}/")


def test_names_whose_servers_do_not_answer_keep_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, from the second look-up on. One name has one thread, whatever the port is."""
    monkeypatch.setattr(outbound_http, "_LOOK_UPS", 2)
    monkeypatch.setattr(outbound_http, "_SLOW_SECONDS", 0.05)
    running: list[str] = []
    twice: list[str] = []
    blocked: list[bool] = []
    released = threading.Event()

    def getaddrinfo(host: str, *_: Any) -> Any:
        if host in running:
            twice.append(host)
        running.append(host)
        if host.startswith("dead"):
            time.sleep(0.1)
            if blocked:
                released.wait(60)
        running.remove(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]

    monkeypatch.setattr(outbound_http.gevent.monkey, "get_original", lambda *_: getaddrinfo)
    look_ups = outbound_http._LookUps()
    dead = [f"dead{number}.example" for number in range(4)]
    asked = [(name, port) for name in dead for port in (80, 443)]
    gevent.joinall([gevent.spawn(look_ups.addresses, *each) for each in asked], timeout=60, raise_error=True)
    blocked.append(True)
    waiting = [gevent.spawn(look_ups.addresses, *each) for each in asked]
    try:
        gevent.sleep(0)
        live = gevent.spawn(look_ups.addresses, "live.example", 443)
        assert live.get(timeout=30) == ["93.184.216.34"]
        assert not any(greenlet.dead for greenlet in waiting)
    finally:
        released.set()
    gevent.joinall(waiting, timeout=60, raise_error=True)
    assert twice == []


def test_a_look_up_that_does_not_begin_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    look_ups = outbound_http._LookUps()

    def begin(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without_threads:
        without_threads.setattr(look_ups._threads.native, "begin", begin)
        for _ in range(2 * outbound_http._LOOK_UPS):
            with gevent.Timeout(30), pytest.raises(RuntimeError):
                look_ups.addresses("127.0.0.1", 80)
    with gevent.Timeout(30):
        assert look_ups.addresses("127.0.0.1", 80) == ["127.0.0.1"]


_AUTHORITIES = st.text(st.sampled_from("ab.:[]@%0179xX-_,; \\\t\u3002\uff11\u00fc\u00ad"), max_size=20)


@given(_AUTHORITIES | _AUTHORITIES.map("[{}]".format) | _AUTHORITIES.map("x.example{}".format))
def test_what_is_asked_for_is_what_was_looked_at(authority: str) -> None:
    """Whatever stands there: Host has a name and a port, and both are those that are resolved and connected to."""
    try:
        parts = checked(f"http://{authority}/a?b")
    except RefusedUrlError:
        return
    host, port = parts.hostname, parts.port
    assert host
    assert parts.netloc.isascii()
    literal = f"[{host}]" if ":" in host else host
    assert parts.netloc == (literal if port is None else f"{literal}:{port}")
    assert "" not in host.split(".")
    assert checked(parts.geturl()) == parts


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://X.Example./a", "x.example"),
        ("http://x.example:0443/a", "x.example:443"),
        ("http://x.example:/a", "x.example"),
        ("http://B\u00fccher.example:8080/a", "xn--bcher-kva.example:8080"),
        ("http://[2606:4700::1]:8080/a", "[2606:4700::1]:8080"),
        ("http://x.example?@127.0.0.1/", "x.example"),
        ("http://x.example#@127.0.0.1/", "x.example"),
    ],
)
def test_a_host_has_one_spelling(url: str, authority: str) -> None:
    assert checked(url).netloc == authority


class Server:
    """Answers each connection with the same octets, again and again if wanted, and keeps what it was asked."""

    def __init__(self, answer: bytes, *, again: bool = False, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[bytes] = []
        self.names: list[str | None] = []
        self._answer, self._again, self._context = answer, again, context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        if context is not None:
            context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) if self._context else plain as client:
                    self.asked.append(client.recv(65536))
                    client.sendall(self._answer)
                    while self._again:
                        client.sendall(self._answer)
            except OSError:
                continue

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", **options: Any) -> Server:
        servers.append(Server(answer, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_the_address_that_was_looked_at_is_the_one_connected_to(serve: Callable[..., Server]) -> None:
    """A name that leads elsewhere at the second look is not looked up a second time."""
    server = serve()
    looks: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> list[str]:
        looks.append((host, port))
        return ["127.0.0.1"] if len(looks) == 1 else ["127.0.0.2"]

    outbound = Outbound(is_routable=lambda _: True, resolve=rebinding)
    assert ask(outbound, f"http://x.example:{server.port}/a?b=c") == (200, b"ok")
    assert looks == [("x.example", server.port)]
    head, _, body = server.asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a?b=c HTTP/1.1\r\nHost: x.example:%d\r\n" % server.port)
    assert body == b"body"


def test_another_address_of_the_name_is_tried(serve: Callable[..., Server]) -> None:
    server = serve()
    outbound = Outbound(is_routable=lambda _: True, resolve=lambda _host, _port: ["127.0.0.9", "127.0.0.1"])
    assert ask(outbound, f"http://x.example:{server.port}/")[0] == 200


def test_a_name_of_many_addresses_is_not_tried_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are looked at: see test_one_private_address_of_several_is_enough."""
    tried: list[str] = []

    def refuse(address: tuple[str, int], **_: Any) -> socket.socket:
        tried.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = [f"93.184.{third}.{fourth}" for third in range(10) for fourth in range(100)]
    with pytest.raises(UnavailableError):
        ask(Outbound(resolve=lambda _host, _port: found), "http://x.example/a")
    assert tried == found[:8]


def test_tls_names_the_host_and_verifies_it(serve: Callable[..., Server], tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, name="x.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve(context=context)
    trusting = ssl.create_default_context(cafile=certificate)
    trusting.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for trusted, host, outcome in (
        (trusting, "x.example", None),
        (trusting, "y.example", "CERT"),
        (None, "x.example", "CERT"),
    ):
        outbound = Outbound(is_routable=lambda _: True, resolve=lambda _host, _port: ["127.0.0.1"], context=trusted)
        url = f"https://{host}:{server.port}/"
        if outcome is None:
            assert ask(outbound, url) == (200, b"ok")
        else:
            with pytest.raises(UnavailableError, match=outcome):
                ask(outbound, url)
    assert server.names == ["x.example", "y.example", "x.example"]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "again", "outcome"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", False, 302),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No\r\n\r\n", False, 204),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", False, 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", False, 200),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n" + b"x" * 5000, True, 200),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 100, True, "header fields without end"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, True, "header fields without end"),
        (b"HTTP/1.1 200 OK\r\nX: x\r\n" + b"X: x\r\n" * 50_000, True, "header fields without end"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 200_000,
            True,
            "header fields without end",
        ),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False, "HttpParser|closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", False, "closed before"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", False, "HttpParser"),
        (b"", False, "closed before"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "HttpParser"),
        (b"\x15\x03\x01\x00\x02\x02\x16", False, "HttpParser"),
    ],
)
def test_what_a_server_says_ends_soon(
    serve: Callable[..., Server], answer: bytes, again: bool, outcome: int | str
) -> None:
    outbound = Outbound(is_routable=lambda _: True)
    server = serve(answer, again=again)
    url = f"http://127.0.0.1:{server.port}/"
    if isinstance(outcome, int):
        assert ask(outbound, url)[0] == outcome
    else:
        with pytest.raises(UnavailableError, match=outcome):
            ask(outbound, url)


def test_a_server_that_never_stops_speaking_is_not_in_time_by_it(serve: Callable[..., Server]) -> None:
    """Octets without a pause let no other greenlet run: the time limit has to be looked at between them."""
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 60_000, again=True)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="TimeoutError"):
        Outbound(is_routable=lambda _: True).request(
            "GET", f"http://127.0.0.1:{server.port}/", {}, None, receive=lambda _status, _octets: True, seconds=0.5
        )
    assert time.monotonic() - began < 20.0
