"""`small_service`, as the tests of the master run it."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.services import free_port, processes

ROOT = Path(__file__).resolve().parents[2]
#: Long enough for a loaded machine; nothing waits so long when it works.
PATIENCE = 60.0


def eventually(what: str, found: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        value = found()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"never happened: {what}")


class Service:
    """A running `small_service.py`, in a separate process group."""

    def __init__(self, log_path: Path, **variables: str) -> None:
        self.port = free_port()
        self.log_path = log_path
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": "postgres://nobody@127.0.0.1/none",
            "SMTP_RELAY_HOST": "127.0.0.1",
            "SMTP_RELAY_PORT": str(self.port),
            "SMTP_RELAY_DRAIN_SECONDS": "20",
        }
        with log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "support" / "small_service.py")],
                env=environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> list[dict[str, Any]]:
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == event]

    def ready(self, count: int = 1) -> list[int]:
        """The pids of the first so many workers that got ready."""
        eventually(f"{count} ready", lambda: len(self.events("ready")) >= count or self.process.poll() is not None)
        pids = [line["pid"] for line in self.events("ready")]
        assert len(pids) >= count, self.log_path.read_text()
        return pids

    def connect(self) -> tuple[socket.socket, int]:
        """A connection, and the pid of the worker that serves it."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        return client, int(client.recv(100))

    def refuses(self) -> bool:
        """Whether nothing listens any more."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        if self.process.poll() is None:
            family = processes.children(self.process.pid, recursive=True)
            self.process.kill()
            self.process.wait()
            processes.kill(family)


def served_certificate(service: Service) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain) as client,
    ):
        client.recv(100)
        certificate = client.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


def der(path: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(Path(path).read_text())
