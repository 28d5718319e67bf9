"""Clients that vanish, go half-way, read nothing, speak another protocol: answered or closed, counted, no traceback."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import time
import urllib.request
from collections.abc import Iterator

import pytest

from scripts.database import query
from scripts.services import free_port
from tests.faults.load import Conversation, Fate, Lost, make_mail, plain, unverified
from tests.faults.stage import Servers, Stage, wait_until
from tests.support.certificates import write_pair
from tests.support.proxy import Proxy
from tests.support.sockets import read_to_end, say_no_more

_RST = struct.pack("ii", 1, 0)


class Ground:
    """A stage whose metrics can be read."""

    def __init__(self, stage: Stage, metrics_port: int, tls_port: int) -> None:
        self.stage = stage
        self.port = stage.relay.port
        self.tls_port = tls_port
        self._metrics_port = metrics_port

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))

    def connect(self) -> socket.socket:
        """A connection that was greeted."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        assert client.recv(200).startswith(b"220")
        return client


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Iterator[Ground]:
    certificate, key = write_pair(tmp_path_factory.mktemp("tls"))
    metrics_port, tls_port = free_port(), free_port()
    settings = {
        "SMTP_RELAY_TLS_CERT_PATH": certificate,
        "SMTP_RELAY_TLS_KEY_PATH": key,
        "SMTP_RELAY_TLS_PORT": str(tls_port),
        "SMTP_RELAY_METRICS_PORT": str(metrics_port),
        "SMTP_RELAY_COMMAND_TIMEOUT_SECONDS": "5",
        "SMTP_RELAY_TLS_HANDSHAKE_SECONDS": "2",
    }
    with Stage(tmp_path_factory.mktemp("stage"), servers, **settings) as stage:
        yield Ground(stage, metrics_port, tls_port)
        stage.check_log()


@pytest.fixture(autouse=True)
def _everybody_is_gone_and_mail_flows(ground: Ground) -> Iterator[None]:
    before = ground.metric("smtp_relay_connections_total")
    yield
    wait_until(lambda: ground.metric("smtp_relay_connections_open") == 0, "every connection is closed", seconds=40)
    assert ground.metric("smtp_relay_connections_total") > before
    with contextlib.closing(Conversation(ground.port, ground.stage.key.token, tls=True)) as client:
        assert client.deliver(make_mail(time.monotonic_ns())).fate is Fate.ACCEPTED


def _rows(ground: Ground, subject: int) -> int:
    (row,) = query(ground.stage.database_url, "SELECT count(*) FROM emails WHERE subject = %s", (str(subject),))
    return int(str(row[0]))


def _vanish(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    client.close()


@pytest.mark.parametrize("steps", range(5), ids=["banner", "EHLO", "STARTTLS", "AUTH", "DATA"])
def test_a_reset_in_any_state(ground: Ground, steps: int) -> None:
    if steps <= 1:
        client = ground.connect()
        if steps:
            client.sendall(b"EHLO c.example\r\n")
        _vanish(client)
        return
    if steps == 2:
        early = Conversation(ground.port, None)
        early.command(b"STARTTLS", b"220")
        early.socket.sendall(b"\x16\x03\x01")
        _vanish(early.socket)
        return
    late = Conversation(ground.port, ground.stage.key.token, tls=True)
    if steps == 4:
        late.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<a@x.example>\r\nDATA\r\nSubject: half")
    _vanish(late.socket)


@pytest.mark.parametrize("port_of", ["port", "tls_port"])
@pytest.mark.parametrize(
    "said", [b"", b"\x00" * 300, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"EHLO c.example\r\nQUIT\r\n"]
)
def test_half_closed_connections_are_closed_whatever_was_said(ground: Ground, port_of: str, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", getattr(ground, port_of)), timeout=20) as client:
        client.sendall(said)
        say_no_more(client)
        began = time.monotonic()
        read_to_end(client)
        assert time.monotonic() - began < 10


def test_a_client_that_speaks_http_is_refused(ground: Ground) -> None:
    with ground.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\nMAIL FROM:<a@b.example>\r\n")
        assert read_to_end(client) == b"421 4.7.0 This is an SMTP server\r\n"


def test_tls_to_the_plain_port_is_closed(ground: Ground) -> None:
    """By the relay: the client goes on to wait for an answer to its ClientHello."""
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        unverified().wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    with ground.connect() as client:
        client.sendall(hello.read())
        said = read_to_end(client)
    assert said.startswith((b"421 ", b"500 ")), said


def test_plain_text_to_the_tls_port_is_closed_and_counted(ground: Ground) -> None:
    before = ground.metric("smtp_relay_tls_failed_total")
    with socket.create_connection(("127.0.0.1", ground.tls_port), timeout=20) as client:
        client.sendall(b"EHLO c.example\r\n")
        read_to_end(client)
    assert ground.metric("smtp_relay_tls_failed_total") == before + 1


def test_silence_on_the_tls_port_ends(ground: Ground) -> None:
    with socket.create_connection(("127.0.0.1", ground.tls_port), timeout=20) as client:
        assert read_to_end(client) == b""


def test_a_record_that_was_not_made_with_the_connections_keys_ends_it(ground: Ground) -> None:
    """A ClientHello in the clear, in mid-connection. Renegotiation itself: tests/security/test_tls_attacks.py."""
    context = unverified()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = Conversation(ground.port, None)
    client.command(b"STARTTLS", b"220")
    client.socket = context.wrap_socket(client.socket)
    client.command(b"EHLO c.example", b"250")
    with socket.socket(fileno=client.socket.detach()) as raw:
        raw.settimeout(20)
        raw.sendall(b"\x16\x03\x03\x00\x28" + bytes(40))
        said = read_to_end(raw)
    # An alert is a record of type 21; a handshake would begin with one of type 22.
    assert said[:1] in (b"\x15", b""), said


def test_a_client_that_never_reads_is_cut_off(ground: Ground) -> None:
    """It stays connected and sends until nothing is taken any more: replies have filled every buffer in between."""
    client = Conversation(ground.port, ground.stage.key.token, tls=True)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.socket.settimeout(1)
    with contextlib.closing(client):
        with contextlib.suppress(Lost):
            while True:
                client.send(b"EHLO c.example\r\n" * 1000)
        wait_until(lambda: ground.metric("smtp_relay_connections_open") == 0, "it is cut off", seconds=20)


def test_a_client_that_is_gone_before_the_reply_leaves_a_row_and_is_known_when_it_comes_again(ground: Ground) -> None:
    """The row is committed: to take it back could take it from a client that had its 250. A repeat is recognised."""
    mail = make_mail(900_001)
    client = Conversation(ground.port, ground.stage.key.token, tls=True)
    client.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<r900001-0@x.example>\r\nDATA\r\n")
    for code in (b"250", b"250", b"354"):
        client.expect(code)
    client.send(mail.octets + b".\r\n")
    _vanish(client.socket)
    wait_until(lambda: _rows(ground, 900_001) == 1, "the row is there")
    with contextlib.closing(Conversation(ground.port, ground.stage.key.token, tls=True)) as again:
        attempt = again.deliver(mail)
    assert b"already queued as" in attempt.reply
    assert _rows(ground, 900_001) == 1


@pytest.mark.parametrize("octets", [1, 100, 1500, 4000])
def test_a_connection_that_is_reset_at_an_octet(ground: Ground, octets: int) -> None:
    """By a proxy in between, which cuts the stream from the client there."""
    with Proxy(ground.port) as proxy:
        proxy.reset_after = octets
        fates = []
        with contextlib.suppress(Lost):
            client = Conversation(proxy.port, ground.stage.key.token, tls=True)
            fates.append(client.deliver(make_mail(900_100 + octets, size=20_000)).fate)
        assert set(fates) <= {Fate.BEFORE_DOT, Fate.AFTER_DOT}


def test_a_client_behind_a_slow_and_lossy_line_gets_through(ground: Ground) -> None:
    with Proxy(ground.port) as proxy:
        proxy.delay_to_server = proxy.delay_to_client = 0.1
        with contextlib.closing(Conversation(proxy.port, ground.stage.key.token, tls=True)) as client:
            assert client.deliver(make_mail(900_200, size=200_000)).fate is Fate.ACCEPTED


def test_a_client_that_loses_its_way_back_is_cut_off_and_its_repeat_known(ground: Ground) -> None:
    mail = make_mail(900_300)
    with Proxy(ground.port) as proxy:
        client = Conversation(proxy.port, ground.stage.key.token, tls=True, timeout=2)
        client.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<r900300-0@x.example>\r\nDATA\r\n")
        for code in (b"250", b"250", b"354"):
            client.expect(code)
        proxy.drop_to_client = True
        client.send(mail.octets + b".\r\n")
        with pytest.raises(Lost):
            client.reply()
        client.close()
    with contextlib.closing(Conversation(ground.port, ground.stage.key.token, tls=True)) as again:
        assert b"already queued as" in again.deliver(mail).reply


def test_auth_in_pieces_that_never_end(ground: Ground) -> None:
    client = Conversation(ground.port, None)
    client.command(b"STARTTLS", b"220")
    client.socket = unverified().wrap_socket(client.socket)
    client.command(b"EHLO c.example", b"250")
    client.send(b"AUTH PLAIN ")
    began = time.monotonic()
    with contextlib.suppress(Lost):
        while True:
            client.send(b"A")
            time.sleep(0.05)
            client.socket.settimeout(0.001)
            with contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
                if not client.socket.recv(100):
                    break
            client.socket.settimeout(5)
    assert time.monotonic() - began < 30
    client.close()


def test_a_good_login_split_over_many_packets(ground: Ground) -> None:
    client = Conversation(ground.port, None)
    client.command(b"STARTTLS", b"220")
    client.socket = unverified().wrap_socket(client.socket)
    client.command(b"EHLO c.example", b"250")
    for octet in b"AUTH PLAIN " + plain(ground.stage.key.token) + b"\r\n":
        client.send(bytes([octet]))
    client.expect(b"235")
    client.close()


def test_a_client_that_does_not_trust_the_certificate_is_counted(ground: Ground) -> None:
    """It breaks the handshake off; the connection ends without another word from either side."""
    before = ground.metric("smtp_relay_tls_failed_total")
    client = Conversation(ground.port, None)
    client.command(b"STARTTLS", b"220")
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(client.socket, server_hostname="localhost")
    wait_until(lambda: ground.metric("smtp_relay_tls_failed_total") == before + 1, "it is counted")
