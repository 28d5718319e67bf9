"""`python -m relay` as an operator runs it, and as a client meets it."""

from __future__ import annotations

import base64
import contextlib
import signal
import smtplib
from collections.abc import Iterator

import psutil

from scripts import services
from scripts.services import processes


class Relay(services.Relay):
    """A relay with a client at hand."""

    @property
    def log(self) -> str:
        """Everything that it wrote so far."""
        return self.log_path.read_text(errors="replace")

    def client(self, token: str | None = None, *, username: str = "opensend") -> smtplib.SMTP:
        """An SMTP client that said EHLO and, with a token, authenticated."""
        client = smtplib.SMTP(self.host, self.port, timeout=20)
        client.ehlo("client.example")
        if token is not None:
            client.login(username, token)
        return client


@contextlib.contextmanager
def frozen(server: services.Server) -> Iterator[None]:
    """A server that neither answers nor goes away, with all its processes."""
    family = processes.family(server.pid)
    processes.send(family, signal.SIGSTOP)
    try:
        yield
    finally:
        processes.send(family, signal.SIGCONT)


def plain(token: str) -> str:
    """The initial response of AUTH PLAIN."""
    return base64.b64encode(b"\0user\0" + token.encode()).decode()


def processes_of(relay: Relay, name: str = "relay-large") -> list[psutil.Process]:
    """Those below the relay that have this name."""
    return processes.named(name, processes.children(relay.pid, recursive=True))
