"""Where dialogues take place: starts `dialogue_server`, connects to its servers, reads what they accepted."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from scripts.certificate import ensure_certificate

#: Long enough for any machine; what takes it has failed.
PATIENCE_SECONDS = 20.0
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Accepted:
    """One message that the relay took."""

    recipients: list[str]
    rule: str
    spooled: bool
    size: int
    digest: str
    body: bytes


class Stage:
    """A process with the given servers (name → settings, tls, pace); see `dialogue_server`."""

    def __init__(self, directory: Path, servers: dict[str, dict[str, Any]], *, linger_seconds: float = 60.0) -> None:
        ensure_certificate(directory)
        (directory / "servers.json").write_text(json.dumps(servers))
        self._directory = directory
        self._log = (directory / "log.jsonl").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.dialogue_server", str(directory)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "LINGER_SECONDS": str(linger_seconds)},
        )
        self._ports = json.loads(self._wait_for("listening.json").read_text())
        self._seen = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            self._log.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _wait_for(self, name: str) -> Path:
        path = self._directory / name
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not path.exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"no {name}:\n{self.log()}")
            time.sleep(0.01)
        return path

    def log(self) -> str:
        """All that the process wrote."""
        return (self._directory / "log.jsonl").read_text(errors="replace")

    def connect(self, server: str, *, implicit_tls: bool = False, source: str = "") -> socket.socket:
        """A new connection, after the handshake where it begins with one; from an address of the loopback network."""
        port = self._ports[server]["implicit" if implicit_tls else "clear"]
        connected = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(source, 0))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.encrypt(connected) if implicit_tls else connected

    def encrypt(self, connected: socket.socket) -> ssl.SSLSocket:
        """The client's side of a handshake, with the certificate verified."""
        context = ssl.create_default_context(cafile=str(self._directory / "certificate.pem"))
        return context.wrap_socket(connected, server_hostname="localhost", suppress_ragged_eofs=False)

    def drain(self, server: str) -> None:
        """Tells a server to drain."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"drain {server}\n".encode())
        self._process.stdin.flush()

    def wait_for_end(self, server: str) -> None:
        """Returns when a drained server has ended."""
        self._wait_for(f"{server}.ended")

    def newly_accepted(self) -> list[Accepted]:
        """The messages that were accepted since the last call. Complete as soon as their clients have the reply."""
        try:
            lines = (self._directory / "accepted.jsonl").read_text().splitlines()
        except FileNotFoundError:
            lines = []
        records = [json.loads(line) for line in lines[self._seen :]]
        self._seen = len(lines)
        return [Accepted(**{**record, "body": base64.b64decode(record["body"])}) for record in records]
