"""TLS taken away, begun twice, and begun when it is too late: keys wait for it, and nothing of it holds other clients
up."""

from __future__ import annotations

import base64
import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.database import NewApiKey
from scripts.services import free_port
from tests.support.certificates import write_pair
from tests.support.relay_process import Relay, plain
from tests.support.sockets import read_to_end, say_no_more


@dataclass(frozen=True)
class Ground:
    """A relay with a certificate, and its two doors."""

    relay: Relay
    tls_port: int

    @property
    def port(self) -> int:
        """Where a dialogue begins in the clear."""
        return self.relay.port


@pytest.fixture
def ground(start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, tmp_path: Path) -> Ground:
    certificate, key = write_pair(tmp_path / "tls")
    tls_port = free_port()
    settings = {
        "SMTP_RELAY_TLS_CERT_PATH": certificate,
        "SMTP_RELAY_TLS_KEY_PATH": key,
        "SMTP_RELAY_TLS_PORT": str(tls_port),
        "SMTP_RELAY_TLS_HANDSHAKE_SECONDS": "2",
        "SMTP_RELAY_LOG_LEVEL": "debug",
    }
    return Ground(start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, **settings), tls_port)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def talk(port: int, *lines: str) -> list[str]:
    """What is said to a client in the clear that doesn't wait, line by line; it reads to the end."""
    with connect(port) as client:
        client.sendall("".join(f"{line}\r\n" for line in lines).encode())
        say_no_more(client)
        return read_to_end(client).decode().splitlines()


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@contextlib.contextmanager
def middleman(port: int) -> Iterator[int]:
    """An attacker between client and relay makes the client believe that there is no TLS to be had, but AUTH."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def pass_on() -> None:
            with listener.accept()[0] as client, connect(port) as relay:
                back = threading.Thread(target=pass_back, args=(relay, client), daemon=True)
                back.start()
                while octets := client.recv(65536):
                    relay.sendall(octets)
                say_no_more(relay)
                back.join(20)

        def pass_back(relay: socket.socket, client: socket.socket) -> None:
            while octets := relay.recv(65536):
                client.sendall(octets.replace(b"250 STARTTLS\r\n", b"250 AUTH PLAIN LOGIN\r\n"))
            say_no_more(client)

        thread = threading.Thread(target=pass_on, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def test_a_client_without_an_offer_of_starttls_can_not_log_in(ground: Ground, api_key: NewApiKey) -> None:
    good = plain(api_key.token)
    login = base64.b64encode(api_key.token.encode()).decode()
    with middleman(ground.port) as port:
        said = talk(
            port,
            "EHLO client.example",
            f"AUTH PLAIN {good}",
            "AUTH LOGIN",
            f"AUTH LOGIN {login}",
            f"auth plain {good}",
            "MAIL FROM:<a@b.example>",
            "RCPT TO:<c@d.example>",
            "DATA",
            "BDAT 0 LAST",
            "HELO client.example",
            f"AUTH PLAIN {good}",
        )
    assert "250 AUTH PLAIN LOGIN" in said
    replies = [line for line in said if line[3] == " " and line[0] in "345"]
    codes = [line[:3] for line in replies]
    assert codes == ["538", "538", "538", "538", "530", "503", "503", "503", "538"]
    # The key was not even looked at: nothing says whether it is good.
    wrong = plain(f"os_live_{'x' * 32}")
    assert talk(ground.port, "EHLO x", f"AUTH PLAIN {wrong}")[-1] == replies[0]
    time.sleep(0.2)
    assert '"authenticated"' not in ground.relay.log
    assert "authentication_failed" not in ground.relay.log


def test_a_key_that_was_sent_before_the_handshake_opens_nothing_after_it(ground: Ground, api_key: NewApiKey) -> None:
    """Injected in front of STARTTLS, behind it, or both: what was said in the clear is forgotten."""
    auth = f"AUTH PLAIN {plain(api_key.token)}\r\n".encode()
    mail = b"MAIL FROM:<a@b.example>\r\n"
    for before, behind in ((auth, b""), (b"", auth + mail), (auth + mail, b"EHLO x\r\n" + auth + mail)):
        with connect(ground.port) as client:
            client.sendall(b"EHLO x\r\n" + before + b"STARTTLS\r\n" + behind)
            said = b""
            while b"220 2.0.0" not in said:
                said += client.recv(4096)
            assert said.endswith(b"220 2.0.0 Ready to start TLS\r\n")
            with unverified().wrap_socket(client) as secured:
                secured.sendall(b"EHLO x\r\n" + mail + b"QUIT\r\n")
                answers = read_to_end(secured).decode().splitlines()
        assert "250 AUTH PLAIN LOGIN" in answers
        assert [line[:3] for line in answers if line[3] == " "] == ["250", "530", "221"]


def client_hello() -> bytes:
    """The first flight of a handshake."""
    outgoing = ssl.MemoryBIO()
    beginning = unverified().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        beginning.do_handshake()
    return outgoing.read()


def test_sigterm_in_the_handshake_of_implicit_tls(ground: Ground) -> None:
    hello = client_hello()
    with contextlib.ExitStack() as stack:
        silent, half_way, waiting, idle = (stack.enter_context(connect(ground.tls_port)) for _ in range(4))
        half_way.sendall(hello[: len(hello) // 2])
        waiting.sendall(hello)
        # The relay's half is here, and never answered.
        assert waiting.recv(1)
        secured = stack.enter_context(unverified().wrap_socket(idle))
        assert secured.recv(4096).startswith(b"220 ")
        ground.relay.send_signal(signal.SIGTERM)
        assert secured.recv(4096).startswith(b"421 4.3.2 ")
        assert read_to_end(silent) == b""
        assert read_to_end(half_way) == b""
        read_to_end(waiting)
    until = time.monotonic() + 20
    while ground.relay.running:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "traceback" not in ground.relay.log.lower()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command, which alone can ask for it")
def test_renegotiation_that_openssl_asks_for_is_refused(ground: Ground, api_key: NewApiKey) -> None:
    """TLS 1.2 lets a client begin a handshake within a handshake, each of which costs us far more than the client."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{ground.tls_port}", "-tls1_2", "-crlf", "-nbio"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        said = b""
        while b"220 " not in said:
            octets = client.stdout.read1(4096)
            assert octets, said
            said += octets
        client.stdin.write(b"R\n")
        client.stdin.flush()
        try:
            said += client.communicate(timeout=20)[0]
        finally:
            client.kill()
    assert b"RENEGOTIATING" in said
    assert b"no renegotiation" in said.lower()
    # No other client is concerned.
    with connect(ground.tls_port) as other, unverified().wrap_socket(other) as secured:
        secured.sendall(b"EHLO x\r\nAUTH PLAIN " + plain(api_key.token).encode() + b"\r\nQUIT\r\n")
        assert b"\r\n235 " in read_to_end(secured)
    assert "traceback" not in ground.relay.log.lower()
