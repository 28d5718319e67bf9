"""`opensend-relay health`: healthy is a process that serves, or that says itself that it is busy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.operator import health
from relay.smtp import replies
from tests.support.certificates import write_pair

VARIABLES = ("PORT", "SMTP_RELAY_PORT", "SMTP_RELAY_HOST", "SMTP_RELAY_HTTP_PORT", "SMTP_RELAY_HTTP_TLS")
PROXIES = ("SMTP_RELAY_PROXY_PROTOCOL", "SMTP_RELAY_HTTP_PROXY_PROTOCOL")


class Answers:
    """A server for one connection, which says something first, or after a line."""

    def __init__(self, first: bytes, then: bytes, certificate: tuple[str, str] | None) -> None:
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, args=(first, then, certificate), daemon=True)
        self._thread.start()

    def _serve(self, first: bytes, then: bytes, certificate: tuple[str, str] | None) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # ended before a connection came
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            connection = context.wrap_socket(connection, server_side=True)
        with connection:
            connection.sendall(first)
            while (first or then) and b"\n" not in self.heard and (received := connection.recv(4096)):
                self.heard += received
            connection.sendall(then)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Answers]]:
    for variable in (*VARIABLES, *PROXIES, "SMTP_RELAY_DELIVERY_METRICS_PORT"):
        monkeypatch.delenv(variable, raising=False)
    started: list[Answers] = []

    def start(first: bytes = b"", then: bytes = b"", certificate: tuple[str, str] | None = None) -> Answers:
        started.append(Answers(first, then, certificate))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.mark.parametrize("variable", ["PORT", "SMTP_RELAY_PORT"])
@pytest.mark.parametrize(
    ("greeting", "status"),
    [
        (b"220 relay.example.com ESMTP\r\n", 0),
        (replies.TOO_MANY_CONNECTIONS.encode(), 0),
        (replies.TOO_MANY_FROM_ADDRESS.encode(), 0),
        (b"421 4.3.2 Service not available, try again later\r\n", 1),
        (replies.SHUTTING_DOWN.encode(), 1),
        (b"", 1),
        (b"554 5.7.0 no\r\n", 1),
    ],
)
def test_the_relay_is_healthy_where_a_worker_greets(
    answers: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch, variable: str, greeting: bytes, status: int
) -> None:
    server = answers(greeting)
    monkeypatch.setenv(variable, f" {server.port} ")
    assert health.main("relay") == status


@pytest.mark.parametrize(
    ("answer", "status"), [(b"HTTP/1.1 404 Not Found\r\n\r\n", 0), (b"421 4.3.2 x\r\n", 1), (b"", 1)]
)
@pytest.mark.parametrize("tls", [False, True])
def test_the_http_process_is_healthy_where_it_answers(
    answers: Callable[..., Answers],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tls: bool,
    answer: bytes,
    status: int,
) -> None:
    server = answers(then=answer, certificate=write_pair(tmp_path) if tls else None)
    monkeypatch.setenv("SMTP_RELAY_HTTP_PORT", str(server.port))
    monkeypatch.setenv("SMTP_RELAY_HTTP_TLS", str(tls).lower())
    assert health.main("web") == status


def test_a_trusted_proxy_sends_its_header_first(
    answers: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answers(then=b"220 relay.example.com ESMTP\r\n")
    monkeypatch.setenv("SMTP_RELAY_PORT", str(server.port))
    monkeypatch.setenv("SMTP_RELAY_PROXY_PROTOCOL", "10.0.0.0/8, 127.0.0.0/8")
    assert health.main("relay") == 0
    assert server.heard == b"PROXY UNKNOWN\r\n"


def test_the_delivery_worker_is_asked_for_its_metrics_port_alone(
    answers: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = answers()
    assert health.main("worker") == 0
    monkeypatch.setenv("SMTP_RELAY_DELIVERY_METRICS_PORT", str(server.port))
    assert health.main("worker") == 0
    server.end()
    assert health.main("worker") == 1


def test_nothing_listens(
    answers: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = answers()
    server.end()
    for variable in ("SMTP_RELAY_PORT", "SMTP_RELAY_HTTP_PORT"):
        monkeypatch.setenv(variable, str(server.port))
    assert (health.main("relay"), health.main("web")) == (1, 1)
    assert capsys.readouterr().out.splitlines()[0] == "relay: no connection: connection refused"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SMTP_RELAY_PORT", "tcp://10.0.0.1:25"),
        ("SMTP_RELAY_PORT", "99999"),
        ("SMTP_RELAY_PROXY_PROTOCOL", "10.0.0.1/8"),
    ],
)
def test_a_wrong_setting_is_named_as_the_reason(
    answers: Callable[..., Answers],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv("SMTP_RELAY_PORT", str(answers().port))
    monkeypatch.setenv(variable, value)
    assert health.main("relay") == 1
    assert capsys.readouterr().out == "relay: a port or a network in the settings is wrong\n"


@pytest.mark.parametrize(
    ("arguments", "process"),
    [
        ("/opt/opensend-relay/bin/python3\0/opt/opensend-relay/bin/opensend-relay\0serve\0", "relay"),
        ("/opt/opensend-relay/bin/python3\0/opt/opensend-relay/bin/opensend-relay\0worker\0", "worker"),
        ("/sbin/init\0--\0opensend-relay\0web\0", "web"),
        ("python\0-m\0relay.delivery\0", "worker"),
        ("sh\0-c\0something\0", "relay"),
        ("", "relay"),
    ],
)
def test_the_first_process_says_what_is_to_be_looked_at(tmp_path: Path, arguments: str, process: str) -> None:
    (tmp_path / "cmdline").write_text(arguments)
    assert health._process_of(tmp_path / "cmdline") == process
    assert health._process_of(tmp_path / "none") == "relay"
