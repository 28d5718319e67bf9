"""A service under the real supervisor whose workers do little, and misbehave when asked. Run as a program.

SMALL_WORKER says how a worker behaves: `good`, `crash` or `refuse` (ends at once, with status 1 or 2), `stubborn`
(never drains), `crash-after-first` (only the first life goes well). A client of a good worker reads its pid and a line
end, then what it sends comes back, and `die` ends the worker.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relay.process import children, master

BEHAVIOUR = os.environ.get("SMALL_WORKER", "good")


def prepare(channel: socket.socket) -> None:
    time.sleep(float(os.environ.get("SMALL_PREPARE_SECONDS", "0")))
    children.prepare(channel)


def serve(index: int, settings_json: bytes, listeners: Sequence[tuple[int, bool]], lifeline: int, _board: int) -> int:
    if BEHAVIOUR == "crash":
        raise ZeroDivisionError
    if BEHAVIOUR == "refuse":
        return 2
    if BEHAVIOUR == "crash-after-first":
        marker = Path(os.environ["SMALL_MARKER"])
        if marker.exists():
            return 1
        marker.touch()

    from gevent import monkey

    monkey.patch_all()
    import gevent
    import structlog
    from gevent.event import Event
    from gevent.server import StreamServer

    import config.logging
    from config.settings import Settings
    from relay.process import signals
    from relay.server.certificate import CertificateStore
    from relay.server.sockets import Listener

    settings = Settings.from_json(settings_json)
    config.logging.configure(settings)
    log = structlog.get_logger("small")
    certificate = None
    if settings.tls_cert_path and settings.tls_key_path:
        certificate = CertificateStore(settings.tls_cert_path, settings.tls_key_path)
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
                client.sendall(received)
        finally:
            client.close()
            open_connections.discard(accepted)

    servers = [StreamServer(Listener.from_fd(fd, tls).socket, handle) for fd, tls in listeners]
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
    signals.attend(lifeline, drain=drain, certificate=certificate)
    log.info("ready", index=index, pid=os.getpid())
    drained.wait()
    log.info("worker drained", index=index)
    return 0


if __name__ == "__main__":
    master.STARTED_AFTER = float(os.environ.get("SMALL_STARTED_AFTER", "3"))
    master.KILL_GRACE = 0.2
    sys.exit(master.run(prepare, serve))
