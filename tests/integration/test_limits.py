"""Limits as clients meet them: real relays, real sockets, addresses of the loopback network as so many clients."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scripts.certificate import ensure_certificate
from scripts.database import NewApiKey, create_api_key, create_database
from scripts.services import Postgres, Valkey, free_port
from tests.support.raw_client import PATIENCE, Client
from tests.support.relay_process import Relay
from tests.support.sockets import say_no_more

Start = Callable[..., Relay]


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Connects to a relay, and hangs up after the test."""
    with contextlib.ExitStack() as stack:

        def connect(relay: Relay, address: str = "127.0.0.1", **options: object) -> Client:
            client = Client(relay, address, **options)  # type: ignore[arg-type]
            stack.callback(client.close)
            return client

        yield connect


Connect = Callable[..., Client]


@pytest.fixture
def start(start_relay: Start, postgres_url: str, redis_url: str) -> Start:
    """Starts a relay on the test's Postgres and Valkey."""

    def start(**settings: str) -> Relay:
        return start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, **settings)

    return start


def eventually(what: str, condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


# Connections


def fill(relay: Relay, connect: Connect, count: int) -> list[Client]:
    """So many clients that are greeted. The check that found the relay ready may hold a place for a moment yet."""
    greeted: list[Client] = []

    def full() -> bool:
        client = connect(relay)
        if client.line().startswith("220"):
            greeted.append(client)
        return len(greeted) == count

    eventually(f"{count} clients are greeted", full)
    return greeted


def test_connections_in_all_are_counted_over_all_workers(start: Start, connect: Connect) -> None:
    relay = start(WEB_CONCURRENCY="3", SMTP_RELAY_MAX_CONNECTIONS="9")
    greeted = fill(relay, connect, 9)
    # Workers that take a client at the same moment may be one beyond it each.
    late = [connect(relay).line() for _ in range(6)]
    assert late[-1] == "421 4.3.2 Too many connections, try again later"
    for client in greeted:
        client.close()
    eventually("room again", lambda: connect(relay).line().startswith("220"))


def test_connections_from_one_address_are_counted_over_all_workers(start: Start, connect: Connect) -> None:
    relay = start(WEB_CONCURRENCY="2", SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS="3")
    greeted = [connect(relay, "127.0.0.2") for _ in range(3)]
    assert {client.line()[:3] for client in greeted} == {"220"}
    assert connect(relay, "127.0.0.2").line() == "421 4.7.0 Too many connections from your address"
    assert connect(relay, "127.0.0.3").line().startswith("220")
    greeted[0].say("QUIT")
    eventually("room again", lambda: connect(relay, "127.0.0.2").line().startswith("220"))
    assert '"client_turned_away"' in relay.log
    assert "127.0.0." not in relay.log.replace('"client":"127.0.0.2"', "").replace(relay.host, "")


def test_a_killed_worker_takes_its_connections_off_the_count(start: Start, connect: Connect) -> None:
    relay = start(SMTP_RELAY_MAX_CONNECTIONS="4")
    fill(relay, connect, 4)
    (worker,) = relay.workers()
    worker.kill()
    eventually("room again", lambda: connect(relay).line().startswith("220"))


# Messages


def test_messages_of_one_connection(start: Start, connect: Connect, api_key: NewApiKey) -> None:
    relay = start(SMTP_RELAY_MAX_MESSAGES_PER_CONNECTION="2")
    client = connect(relay)
    client.line()
    client.auth(api_key.token)
    for _ in range(2):
        assert client.say("MAIL FROM:<a@b.example>").startswith("250")
        client.say("RSET")
    assert client.say("MAIL FROM:<a@b.example>").startswith("421 4.7.0 Too many messages")
    assert client.line() == ""


def test_messages_of_one_key_are_counted_over_all_processes(start: Start, connect: Connect, api_key: NewApiKey) -> None:
    relays = [start(SMTP_RELAY_KEY_MESSAGES_PER_MINUTE="5") for _ in range(2)]
    answers = []
    for number in range(8):
        client = connect(relays[number % 2], f"127.0.0.{number + 1}")
        client.line()
        client.auth(api_key.token)
        answers.append(client.say("MAIL FROM:<a@b.example>")[:9])
    assert answers == ["250 2.1.0"] * 5 + ["450 4.7.1"] * 3


def test_messages_of_one_address_are_counted_without_redis_too(
    start_relay: Start, postgres_url: str, connect: Connect, api_key: NewApiKey
) -> None:
    relay = start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=f"redis://127.0.0.1:{free_port()}",
        SMTP_RELAY_ADDRESS_MESSAGES_PER_MINUTE="2",
    )

    client = connect(relay, "127.0.0.2")
    client.line()
    client.auth(api_key.token)
    replies = []
    for _ in range(3):
        replies.append(client.say("MAIL FROM:<a@b.example>")[:9])
        client.say("RSET")
    assert replies == ["250 2.1.0", "250 2.1.0", "450 4.7.1"]
    other = connect(relay, "127.0.0.3")
    other.line()
    other.auth(api_key.token)
    assert other.say("MAIL FROM:<a@b.example>").startswith("250")


def test_commands_before_auth(start: Start, connect: Connect) -> None:
    relay = start(SMTP_RELAY_MAX_COMMANDS_BEFORE_AUTH="3")
    client = connect(relay)
    client.line()
    assert client.say("NOOP", "NOOP", "NOOP").startswith("250")
    assert client.say("NOOP") == "421 4.7.0 Too many commands without authentication"
    assert client.line() == ""


# Time


def test_a_whole_connection(start: Start, connect: Connect) -> None:
    relay = start(SMTP_RELAY_CONNECTION_SECONDS="1")
    client = connect(relay)
    client.line()
    answers = []
    with contextlib.suppress(ConnectionError):
        while not answers or answers[-1].startswith("250"):
            answers.append(client.say("NOOP"))
            time.sleep(0.1)
    assert answers[-1].startswith("421 4.4.2")


# PROXY protocol

V2 = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(address: str) -> bytes:
    body = socket.inet_aton(address) + socket.inet_aton("127.0.0.1") + b"\x9c\x40\x0a\x1b"
    tlv = b"\x04\x00\x03\x00\x00\x00"
    return V2 + b"\x21\x11" + (len(body) + len(tlv)).to_bytes(2, "big") + body + tlv


def v1(address: str) -> bytes:
    return f"PROXY TCP4 {address} 127.0.0.1 40000 2587\r\n".encode()


@dataclass(frozen=True)
class Proxied:
    """A relay that trusts 127.0.1.x to speak for others, and takes one connection from each address."""

    relay: Relay
    tls_port: int
    token: str


@pytest.fixture(scope="module")
def proxied(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres, schema_template: str, valkey_server: Valkey
) -> Iterator[Proxied]:
    """One for all tests: each has a separate proxy and clients."""
    directory = tmp_path_factory.mktemp("proxied")
    database_url = create_database(postgres_server.url(), f"test_{uuid.uuid4().hex}", schema_template)
    certificate, key = ensure_certificate(directory / "tls")
    tls_port = free_port()
    settings = {
        "DATABASE_URL": database_url,
        "REDIS_URL": valkey_server.url,
        "SMTP_RELAY_PROXY_PROTOCOL": "127.0.1.0/24, 2001:db8::/32",
        "SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS": "1",
        "SMTP_RELAY_TLS_PORT": str(tls_port),
        "SMTP_RELAY_TLS_CERT_PATH": str(certificate),
        "SMTP_RELAY_TLS_KEY_PATH": str(key),
    }
    with Relay(directory / "relay", settings) as relay:
        yield Proxied(relay, tls_port, create_api_key(database_url).token)


def test_limits_see_whom_the_proxy_names(proxied: Proxied, connect: Connect) -> None:
    relay = proxied.relay
    first = connect(relay, "127.0.1.1", first=v1("198.51.100.1") + b"EHLO x\r\nNOOP\r\n")
    # What came along with the header is not lost.
    assert first.line().startswith("220")
    assert first.reply().startswith("250")
    assert first.reply() == "250 2.0.0 Ok"
    assert connect(relay, "127.0.1.1", first=v2("198.51.100.1")).line().startswith("421 4.7.0 Too many")
    assert connect(relay, "127.0.1.1", first=v2("198.51.100.2")).line().startswith("220")
    # A client that has the same address and comes by itself is the same client.
    assert connect(relay, "127.0.1.1", first=v2("127.0.0.3")).line().startswith("220")
    assert connect(relay, "127.0.0.3").line().startswith("421 4.7.0 Too many")
    assert "127.0.1." not in relay.log
    assert "198.51.100" not in relay.log.replace('"client":"198.51.100.1"', "")


def test_a_proxy_speaks_for_itself(proxied: Proxied, connect: Connect) -> None:
    relay = proxied.relay
    assert connect(relay, "127.0.1.2", first=V2 + b"\x20\x00\x00\x00").line().startswith("220")
    assert connect(relay, "127.0.1.2", first=b"PROXY UNKNOWN\r\n").line().startswith("421 4.7.0 Too many")
    assert connect(relay, "127.0.1.3", first=b"PROXY UNKNOWN\r\n").line().startswith("220")


@pytest.mark.parametrize("first", [b"EHLO client.example\r\n", b"GET / HTTP/1.1\r\n\r\n", v2("192.0.2.1")[:-1]])
def test_a_proxy_that_says_something_else_is_refused(proxied: Proxied, connect: Connect, first: bytes) -> None:
    client = connect(proxied.relay, "127.0.1.4", first=first)
    say_no_more(client.socket)
    assert client.line() in ("421 4.7.0 A PROXY protocol header is required here", "")
    assert client.line() == ""


def test_a_proxy_that_says_nothing_is_refused_in_time(proxied: Proxied, connect: Connect) -> None:
    began = time.monotonic()
    assert connect(proxied.relay, "127.0.1.5").line() == "421 4.7.0 A PROXY protocol header is required here"
    assert time.monotonic() - began > 4


@pytest.mark.parametrize(("first", "address"), [(v1("198.51.100.1"), "127.0.0.4"), (v2("198.51.100.1"), "127.0.0.5")])
def test_a_header_from_anyone_else_is_refused(proxied: Proxied, connect: Connect, first: bytes, address: str) -> None:
    client = connect(proxied.relay, address)
    assert client.line().startswith("220")
    client.socket.sendall(first)
    answers = [client.line()]
    while answers[-1]:
        answers.append(client.line())
    assert all(answer[:1] in ("4", "5") for answer in answers[:-1])


def test_the_header_comes_before_the_tls_handshake(proxied: Proxied, connect: Connect) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for first in (v1("198.51.100.6"), v2("198.51.100.7")):
        client = connect(proxied.relay, "127.0.1.6", first=first, port=proxied.tls_port)
        client.socket = context.wrap_socket(client.socket)
        assert client.line().startswith("220")
        assert client.auth(proxied.token).startswith("235")


def test_a_header_that_is_on_its_way_does_not_hold_up_the_end(start: Start, connect: Connect) -> None:
    relay = start(SMTP_RELAY_PROXY_PROTOCOL="127.0.1.0/24")
    client = connect(relay, "127.0.1.7", first=v1("198.51.100.1")[:20])
    connect(relay, "127.0.0.3").line()
    began = time.monotonic()
    relay.stop()
    assert time.monotonic() - began < PATIENCE
    assert client.line()[:3] in ("421", "")
    assert "Traceback" not in relay.log


# File descriptors


def worker_of(relay: Relay) -> psutil.Process:
    (worker,) = relay.workers()
    return worker


@pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="the limit of another process can be changed on Linux only"
)
def test_without_a_descriptor_left_clients_get_421(start: Start, connect: Connect) -> None:
    relay = start()
    worker = worker_of(relay)
    served = connect(relay)
    assert served.line().startswith("220")
    soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    highest = max(int(number) for number in os.listdir(f"/proc/{worker.pid}/fd"))
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
    while connect(relay).line().startswith("220"):
        pass  # there are gaps below the highest
    before = worker.cpu_times()
    assert {connect(relay).line() for _ in range(30)} == {"421 4.3.2 Too many connections, try again later"}
    time.sleep(1.0)
    after = worker.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.9  # no busy loop
    assert served.say("NOOP").startswith("250")
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert connect(relay).line().startswith("220")
    assert "Traceback" not in relay.log
    assert relay.log.count("accept_failed") == 1


@pytest.mark.skipif(
    not hasattr(resource, "prlimit"), reason="the limit of another process can be changed on Linux only"
)
def test_without_a_reserve_descriptor_the_relay_pauses_and_recovers(start: Start, connect: Connect) -> None:
    """The last descriptor is taken: the relay rests and serves again when there are some."""
    relay = start()
    worker = worker_of(relay)
    soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, hard))
    client = connect(relay)
    before = worker.cpu_times()
    time.sleep(1.0)
    after = worker.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.9
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert client.line().startswith("220")
    assert "Traceback" not in relay.log


def test_the_limit_is_raised_as_far_as_it_may(start: Start) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    relay = start()
    assert psutil.Process(worker_of(relay).pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard) or soft == hard


def test_a_limit_that_the_descriptors_can_not_keep_is_refused() -> None:
    script = (
        "import resource, os, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500)); "
        "os.execv(sys.executable, [sys.executable, '-m', 'relay'])"
    )
    root = Path(__file__).resolve().parent.parent.parent
    variables = {"PATH": os.environ["PATH"], "DATABASE_URL": "postgres://u@db/x", "SMTP_RELAY_MAX_CONNECTIONS": "401"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "SMTP_RELAY_MAX_CONNECTIONS is 401: should be at most 400, since a process may open 500 files here "
        "(ulimit -Hn), and needs 100 besides connections\n"
    )
