"""What a client can make the relay compute, hold and log before it has logged in."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.database import NewApiKey
from scripts.services import free_port
from tests.support.certificates import write_pair
from tests.support.relay_process import Relay, plain
from tests.support.sockets import read_to_end

Start = Callable[..., Relay]


@pytest.fixture
def tls_port() -> int:
    return free_port()


@pytest.fixture
def relay(start_relay: Start, postgres_url: str, redis_url: str, tmp_path: Path, tls_port: int) -> Relay:
    certificate, key = write_pair(tmp_path / "tls")
    return start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        SMTP_RELAY_TLS_CERT_PATH=certificate,
        SMTP_RELAY_TLS_KEY_PATH=key,
        SMTP_RELAY_TLS_PORT=str(tls_port),
        SMTP_RELAY_LOG_LEVEL="info",
    )


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def secured(port: int, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    return (context or unverified()).wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30))


OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")


def s_client(port: int, *options: str) -> bytes:
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", "-nocommands", *options]
    ended = subprocess.run(command, input=b"QUIT\r\n", capture_output=True, timeout=30, check=False)
    return ended.stdout + ended.stderr


@OPENSSL
@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192", "P-521", "X448"])
def test_a_dear_key_exchange_is_refused_by_the_running_service(relay: Relay, tls_port: int, group: str) -> None:
    for port, options in ((relay.port, ("-starttls", "smtp")), (tls_port, ())):
        assert b"handshake failure" in s_client(port, *options, "-groups", group)


@OPENSSL
@pytest.mark.parametrize("group", ["X25519", "P-256", "P-384"])
def test_the_usual_ones_are_taken(relay: Relay, tls_port: int, group: str) -> None:
    assert b"\n220 " in s_client(tls_port, "-groups", group)


@OPENSSL
@pytest.mark.parametrize(
    "cipher", ["ECDHE-ECDSA-AES256-SHA384", "ECDHE-ECDSA-AES128-SHA", "DHE-RSA-AES256-GCM-SHA384", "AES256-GCM-SHA384"]
)
def test_tls_1_2_without_forward_secrecy_or_authenticated_encryption_is_refused(
    relay: Relay, tls_port: int, cipher: str
) -> None:
    assert b"handshake failure" in s_client(tls_port, "-tls1_2", "-cipher", cipher)
    assert b"\n220 " in s_client(tls_port, "-tls1_2")


def test_no_session_tickets_are_sent(relay: Relay, tls_port: int) -> None:
    """They would be written before the client has read a thing."""
    with secured(tls_port) as client:
        assert client.recv(4096).startswith(b"220 ")
        assert client.version() == "TLSv1.3"
        assert client.session is None or not client.session.has_ticket


def test_many_handshakes_at_once_all_come_about_and_the_others_are_answered(
    relay: Relay, tls_port: int, api_key: NewApiKey
) -> None:
    """Four clients that do nothing but handshakes, and one that has logged in."""
    failures: list[BaseException] = []
    over = threading.Event()

    def shake_hands() -> None:
        try:
            for _ in range(25):
                secured(tls_port).close()
        except OSError as error:
            failures.append(error)

    def talk() -> None:
        try:
            with secured(tls_port) as client:
                reader = client.makefile("rb")
                client.sendall(b"EHLO x\r\nAUTH PLAIN " + plain(api_key.token).encode() + b"\r\n")
                while not reader.readline().startswith(b"235 "):
                    pass
                while not over.is_set():
                    client.sendall(b"NOOP\r\n")
                    assert reader.readline().startswith(b"250 ")
        except (OSError, AssertionError) as error:
            failures.append(error)

    talking = threading.Thread(target=talk)
    talking.start()
    clients = [threading.Thread(target=shake_hands) for _ in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join(120)
    over.set()
    talking.join(60)
    assert failures == []


def test_refused_clients_do_not_fill_the_log(start_relay: Start, postgres_url: str) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS="1")
    count = 600
    with socket.create_connection((relay.host, relay.port), timeout=30) as kept:
        assert kept.recv(4096).startswith(b"220 ")
        before = relay.log.count("\n")
        for _ in range(count):
            with socket.create_connection((relay.host, relay.port), timeout=30) as refused:
                assert read_to_end(refused).startswith(b"421 ")
    relay.stop()
    lines = [json.loads(line) for line in relay.log.splitlines()[before:] if line.startswith("{")]
    refusals = [line for line in lines if line["event"] == "client_turned_away"]
    # The summaries of the last second are written at the end.
    assert sum(line.get("more", 1) for line in refusals) == count
    assert len(refusals) < count / 4


def test_failed_handshakes_do_not_fill_the_log(relay: Relay, tls_port: int) -> None:
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", tls_port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            read_to_end(client)
    relay.stop()
    lines = [json.loads(line) for line in relay.log.splitlines() if "tls_handshake_failed" in line]
    assert sum(line.get("more", 1) for line in lines) == 300
    assert len(lines) < 100
