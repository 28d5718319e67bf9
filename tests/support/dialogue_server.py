"""The relay's server and dialogue in a process of their own, with a double for all other parts.

`python -m tests.support.dialogue_server DIRECTORY` reads its servers from DIRECTORY/servers.json, writes where they
listen to DIRECTORY/listening.json, appends what it accepts to DIRECTORY/accepted.jsonl and what it logs to standard
output. A line `drain NAME` on standard input drains one server; the end of standard input ends the process.

Every step that can fail has a knob that a client can turn. The password opens, or not:
    good · slow-SECONDS (then good) · unavailable (454) · bug (raises) · anything else (535)
The local part of the first recipient decides about the message:
    refuse-CODE (that reply) · slow-SECONDS (then stored) · bug (raises) · anything else is stored
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import base64
import json
import os
import socket
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import gevent
import gevent.socket

import config.logging
from config.settings import Settings
from relay.core.outcomes import LoginFailure
from relay.core.records import ApiKey
from relay.core.tls_memory import put_tls_into_memory
from relay.limits.client import ProcessLimits
from relay.redis.link import RedisLink
from relay.server.certificate import CertificateStore
from relay.server.server import Server
from relay.server.sockets import Listener
from relay.smtp import replies
from relay.smtp.connection import Connection, Pace
from relay.smtp.submission import Login, Submission, Verdict

# As in the processes of the relay.
put_tls_into_memory()

REFUSALS = {
    "refuse-451": replies.TRY_LATER,
    "refuse-550": replies.NO_SENDER,
    "refuse-552": replies.ATTACHMENTS_TOO_LARGE,
}


class ServicesDouble:
    """Stores messages in a file, and fails where it is told to."""

    def __init__(self, accepted: Path) -> None:
        self._accepted = accepted

    def authenticate(self, password: str) -> Login | LoginFailure:
        """As `relay.smtp.submission.Services` says."""
        if password == "unavailable":
            return LoginFailure.UNAVAILABLE
        if password == "bug":
            raise RuntimeError("a bug in authenticate")
        if password.startswith("slow-"):
            gevent.sleep(float(password.removeprefix("slow-")))
        elif password != "good":
            return LoginFailure.WRONG_KEY
        return Login("0" * 64, ApiKey("key", "user", "full_access", None))

    def submit(self, submission: Submission) -> Verdict:
        """As `relay.smtp.submission.Services` says. The id names octets and digest of what was received."""
        knob = submission.recipients[0].partition("@")[0]
        if knob in REFUSALS:
            return Verdict(REFUSALS[knob], knob)
        if knob == "bug":
            raise RuntimeError("a bug in accept")
        if knob.startswith("slow-"):
            gevent.sleep(float(knob.removeprefix("slow-")))
        octets = submission.body.read()
        email_id = f"{len(octets)}-{sha256(octets).hexdigest()[:12]}"
        record = {
            "recipients": submission.recipients,
            "rule": submission.rule,
            "spooled": submission.body.spooled,
            "size": submission.body.size,
            "digest": sha256(octets).hexdigest(),
            "body": base64.b64encode(octets[:100_000]).decode("ascii"),
        }
        with self._accepted.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return Verdict(replies.queued(email_id), "queued", email_id)


def _listening_socket() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1024)
    listening.setblocking(False)
    return listening


def _serve(directory: Path, name: str, server: Server, listeners: list[Listener]) -> None:
    server.serve(listeners)
    (directory / f"{name}.ended").touch()


def main(directory: Path) -> None:
    """Serves until standard input ends."""
    wanted: dict[str, dict[str, Any]] = json.loads((directory / "servers.json").read_text())
    services = ServicesDouble(directory / "accepted.jsonl")
    redis_link = RedisLink(None, verify_tls=True, timeout=0.1, pause=1.0)
    servers: dict[str, Server] = {}
    listening: dict[str, dict[str, int]] = {"process": {"pid": os.getpid()}}
    for name, options in wanted.items():
        settings = Settings(
            database_url="postgresql://unused",
            hostname="relay.test",
            log_format="json",
            log_level="debug",
            **{"spool_dir": str(directory), **options.get("settings", {})},
        )
        config.logging.configure(settings)
        certificate = None
        listeners = [Listener(_listening_socket(), implicit_tls=False)]
        if options.get("tls"):
            certificate = CertificateStore(str(directory / "certificate.pem"), str(directory / "key.pem"))
            listeners.append(Listener(_listening_socket(), implicit_tls=True))
        server = servers[name] = Server(
            settings, services, ProcessLimits(settings, redis_link), certificate=certificate
        )
        server.pace = Pace(**options.get("pace", {}))
        listening[name] = {
            "implicit" if listener.implicit_tls else "clear": listener.socket.getsockname()[1] for listener in listeners
        }
        gevent.spawn(_serve, directory, name, server, listeners)
    gevent.sleep(0)
    Connection.linger_seconds = float(os.environ.get("LINGER_SECONDS", Connection.linger_seconds))
    (directory / "listening.json.new").write_text(json.dumps(listening))
    (directory / "listening.json.new").rename(directory / "listening.json")
    orders = b""
    os.set_blocking(0, False)
    while True:
        gevent.socket.wait_read(0)
        read = os.read(0, 4096)
        if not read:
            return
        *lines, orders = (orders + read).split(b"\n")
        for line in lines:
            verb, name = line.decode().split(" ")
            assert verb == "drain"
            servers[name].drain()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
