"""`python -m relay` as an operator runs it, and as a client meets it."""

from __future__ import annotations

import base64
import contextlib
import smtplib
from collections.abc import Iterator

import psutil

from scripts import services


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
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.suspend()
    try:
        yield
    finally:
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()


def plain(token: str) -> str:
    """The initial response of AUTH PLAIN."""
    return base64.b64encode(b"\0user\0" + token.encode()).decode()


def processes(relay: Relay, name: str = "relay-large") -> list[psutil.Process]:
    """Those below the relay that have this name."""
    found = []
    for process in psutil.Process(relay.pid).children(recursive=True):
        try:
            if process.name() == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
