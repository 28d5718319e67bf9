"""A service under the real supervisor whose workers do little, and misbehave when asked. Run as a program.

SMALL_WORKER says how a worker behaves: `good`, `crash` or `refuse` (ends at once, with status 1 or 2), `stubborn`
(never drains), `crash-after-first` (only the first life goes well). A client of a good worker reads its pid and a line
end, then what it sends comes back; `die` ends the worker, `hang` makes it work for hours in one call of C, `spin` in
Python. SMALL_SILENT_LOOKS makes the master look ten times a second, and so often before a worker counts as hung.
SMALL_CODE is a file that counts as code. SMALL_ADOPTS=no: a system where the master can't take in orphans.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

from relay.process import children, forking, heartbeat, master, roster, termination
from relay.process.assignment import Assignment

BEHAVIOUR = os.environ.get("SMALL_WORKER", "good")


def prepare(channel: socket.socket) -> None:
    time.sleep(float(os.environ.get("SMALL_PREPARE_SECONDS", "0")))
    children.prepare(channel)


def in_one_call() -> None:
    re.match("(a*)*b", "a" * 60)


def load(_settings: bytes) -> None:
    children.show_stack_on_signal()
    if "SMALL_CODE" in os.environ:
        sys.modules["small_code"] = types.ModuleType("small_code")
        sys.modules["small_code"].__file__ = os.environ["SMALL_CODE"]

    from gevent import monkey

    monkey.patch_all()


def serve(assignment: Assignment) -> int:
    index = assignment.index
    if BEHAVIOUR == "crash":
        raise ZeroDivisionError
    if BEHAVIOUR == "refuse":
        return 2
    if BEHAVIOUR == "crash-after-first":
        marker = Path(os.environ["SMALL_MARKER"])
        if marker.exists():
            return 1
        marker.touch()

    import gevent
    import structlog
    from gevent.event import Event
    from gevent.server import StreamServer

    import config.logging
    from config.settings import Settings
    from relay.process import signals
    from relay.server.certificate import CertificateStore, Pair
    from relay.server.sockets import Listener

    settings = Settings.from_json(assignment.settings)
    config.logging.configure(settings)
    log = structlog.get_logger("small")
    certificate = None
    if settings.tls_cert_path and settings.tls_key_path:
        certificate = CertificateStore(
            settings.tls_cert_path, settings.tls_key_path, Pair.decode(assignment.certificate)
        )
    drained = Event()
    open_connections: set[Any] = set()

    def handle(accepted: Any, _address: object) -> None:
        open_connections.add(accepted)
        client = accepted
        try:
            if certificate is not None:
                client = certificate.context.wrap_socket(accepted, server_side=True)
            client.sendall(b"%d\n" % os.getpid())
            while received := client.recv(1000):
                if received == b"die":
                    os._exit(3)
                if received == b"hang":
                    in_one_call()
                while received == b"spin":
                    pass
                client.sendall(received)
        finally:
            client.close()
            open_connections.discard(accepted)

    servers = [StreamServer(Listener.from_fd(fd, tls).socket, handle) for fd, tls in assignment.listeners]
    for server in servers:
        server.max_accept = 1
        server.start()

    def drain() -> None:
        if BEHAVIOUR == "stubborn":
            return
        for server in servers:
            server.close()
        while open_connections:
            gevent.sleep(0.01)
        drained.set()

    signals.CERTIFICATE_POLL_SECONDS = 0.05
    signals.attend(assignment.lifeline, drain=drain, certificate=certificate, keeper=assignment.keeper)
    beat = gevent.get_hub().loop.timer(0, repeat=0.1, ref=False)
    beat.start(assignment.heartbeats.beat, index)
    log.info("ready", index=index, pid=os.getpid())
    drained.wait()
    log.info("worker_drained", index=index)
    return 0


if __name__ == "__main__":
    roster.STARTED_AFTER = master.STARTED_AFTER = float(os.environ.get("SMALL_STARTED_AFTER", "3"))
    termination.KILL_GRACE = 0.2
    if "SMALL_SILENT_LOOKS" in os.environ:
        master.BEAT_SECONDS = 0.1
        roster.DUMP_SECONDS = 0.5
        heartbeat.SILENT_LOOKS = int(os.environ["SMALL_SILENT_LOOKS"])
    if os.environ.get("SMALL_ADOPTS") == "no":
        forking.adopt_orphans = lambda: False
    sys.exit(master.run(prepare, load, serve))
