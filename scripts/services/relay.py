"""The relay itself, as a separate process with a separate environment."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from scripts.services.processes import serving
from scripts.services.server import Server

ROOT = Path(__file__).resolve().parent.parent.parent


class Relay(Server):
    """`python -m relay` on 127.0.0.1. What it logs is in `server.log`, one JSON object a line."""

    name = "The relay"

    def __init__(
        self, directory: Path, settings: Mapping[str, str | None], port: int | None = None, *, checkout: Path = ROOT
    ) -> None:
        """`settings` are environment variables; None takes one out of the environment that the relay inherits.

        `checkout` is the folder that holds the relay's code.
        """
        super().__init__(directory, port)
        self._given = dict(settings)
        self._checkout = checkout

    def set(self, variable: str, value: str | None) -> None:
        """Changes one variable for the next start."""
        self._given[variable] = value

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-m", "relay"]

    def working_directory(self) -> Path:
        """See Server."""
        return self._checkout

    def environment(self) -> dict[str, str]:
        """See Server."""
        wanted: dict[str, str | None] = {
            **super().environment(),
            "PYTHONPATH": str(self._checkout),
            "SMTP_RELAY_HOST": self.host,
            "SMTP_RELAY_PORT": str(self.port),
            "SMTP_RELAY_LOG_FORMAT": "json",
            **self._given,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def answers(self) -> bool:
        """Whether it greets: this one, and no other that took the port a moment earlier."""
        if not self._listens():
            return False
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as connection:
                greeted = connection.recv(4) == b"220 "
                connection.sendall(b"QUIT\r\n")
                return greeted
        except OSError:
            return False

    def workers(self) -> list[psutil.Process]:
        """The processes that serve, as far as there are any; without those that they have started."""
        return serving(self.pid)

    def _listens(self) -> bool:
        try:
            connections = psutil.Process(self.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return any(each.status == psutil.CONN_LISTEN and each.laddr[1] == self.port for each in connections)

    def _last_words(self) -> str:
        """What it says of settings it can't work with is plain text on stderr, before any log line."""
        said = self.log_path.read_bytes()[self._log_start :].decode(errors="replace")
        lines = [line for line in said.splitlines() if line and not line.startswith("{")]
        return lines[-1] if lines else super()._last_words()


class Delivery(Server):
    """`python -m relay.delivery`. It listens nowhere; what it logs is in `server.log`, one JSON object a line."""

    name = "The delivery worker"

    def __init__(self, directory: Path, settings: Mapping[str, str | None], *, checkout: Path = ROOT) -> None:
        """`settings` and `checkout` as for `Relay`."""
        super().__init__(directory)
        self._given = dict(settings)
        self._checkout = checkout

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-m", "relay.delivery"]

    def working_directory(self) -> Path:
        """See Server."""
        return self._checkout

    def environment(self) -> dict[str, str]:
        """See Server."""
        wanted: dict[str, str | None] = {
            **super().environment(),
            "PYTHONPATH": str(self._checkout),
            "SMTP_RELAY_LOG_FORMAT": "json",
            **self._given,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def answers(self) -> bool:
        """Whether it has said that it takes work."""
        return b'"delivery_ready"' in self.log_path.read_bytes()[self._log_start :]


class Web(Server):
    """The HTTP process. What it logs is in `server.log`, one JSON object a line."""

    name = "The HTTP process"

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str | None],
        port: int | None = None,
        *,
        sns: tuple[str, int] | None = None,
    ) -> None:
        """`settings` as for `Relay`. `sns`: the authority and the port of a double of SNS; None: Amazon's."""
        super().__init__(directory, port)
        self._given = dict(settings)
        self._sns = sns

    def command(self) -> list[str]:
        """See Server."""
        if self._sns is None:
            return [sys.executable, "-m", "relay.web"]
        cafile, port = self._sns
        return [sys.executable, "-P", "-m", "scripts.web_with_double", cafile, str(port)]

    def working_directory(self) -> Path:
        """See Server."""
        return ROOT

    def environment(self) -> dict[str, str]:
        """See Server."""
        wanted: dict[str, str | None] = {
            **super().environment(),
            "PYTHONPATH": str(ROOT),
            "SMTP_RELAY_HOST": self.host,
            "SMTP_RELAY_HTTP_PORT": str(self.port),
            "SMTP_RELAY_LOG_FORMAT": "json",
            **self._given,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def answers(self) -> bool:
        """Whether it has said that it serves."""
        return b'"web_ready"' in self.log_path.read_bytes()[self._log_start :]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """Everything that it wrote so far."""
        return self.log_path.read_text(errors="replace")
