"""An HTTPS server that takes webhooks, and a worker that may reach it: 127.0.0.1 is refused to every other worker."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scripts.services.server import Server

ROOT = Path(__file__).resolve().parents[2]


class Hook(NamedTuple):
    """A request that the sink took."""

    path: str
    fields: dict[str, str]
    body: str
    #: What the client named in the TLS handshake.
    server_name: str

    @property
    def id(self) -> str:
        """The field svix-id."""
        return self.fields.get("svix-id", "")


class WebhookSink(Server):
    """Takes webhooks at every name under example.com; what a path does is in `webhook_sink_double`."""

    name = "The webhook sink"

    @property
    def certificate(self) -> Path:
        """Whom to trust, PEM."""
        return self.directory / "sink.pem"

    def url(self, path: str, host: str = "hooks.example.com") -> str:
        """The URL of a path."""
        return f"https://{host}:{self.port}{path}"

    def taken(self) -> list[Hook]:
        """Every request that it took, in order."""
        path = self.directory / "requests.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Hook(**json.loads(line)) for line in lines]

    def forget(self) -> None:
        """Forgets what it took."""
        (self.directory / "requests.jsonl").write_text("")

    def command(self) -> list[str]:
        """See Server."""
        module = "scripts.services.webhook_sink_double"
        return [sys.executable, "-m", module, self.host, str(self.port), str(self.directory)]

    def working_directory(self) -> Path:
        """See Server."""
        return ROOT

    def environment(self) -> dict[str, str]:
        """See Server."""
        return {**super().environment(), "PYTHONPATH": str(ROOT)}

    def answers(self) -> bool:
        """See Server."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=2):
            return True
        return False


class WebhookWorker(Server):
    """A delivery process for which every name leads to 127.0.0.1, and that may go there."""

    name = "The webhook worker"

    def __init__(self, directory: Path, sink: WebhookSink, settings: Mapping[str, str | None]) -> None:
        """`settings` as for `Delivery`."""
        super().__init__(directory)
        self._sink = sink
        self._given = dict(settings)

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-m", "scripts.services.webhook_worker", str(self._sink.certificate)]

    def working_directory(self) -> Path:
        """See Server."""
        return ROOT

    def environment(self) -> dict[str, str]:
        """See Server."""
        fixed = {"SMTP_RELAY_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
        wanted = {**super().environment(), **fixed, **self._given}
        return {name: value for name, value in wanted.items() if value is not None}

    def answers(self) -> bool:
        """Whether it has said that it takes work."""
        return '"delivery_ready"' in self.log_path.read_bytes()[self._log_start :].decode(errors="replace")


class WebhookService(WebhookWorker):
    """The whole of `python -m relay.delivery` in the same place: its master, and what that forks."""

    name = "The webhook service"

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-P", "-m", "scripts.delivery_with_sink", str(self._sink.certificate)]
