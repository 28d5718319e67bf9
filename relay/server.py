"""Sockets and connections: accepts clients, counts them, and lets them finish when the process ends."""

from __future__ import annotations

import itertools
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import gevent
import structlog
from gevent.event import Event
from gevent.server import StreamServer

from config.settings import Settings
from relay.journal import Journal
from relay.listening import Listener
from relay.smtp import replies
from relay.smtp.connection import Connection, Drain, Pace
from relay.smtp.options import Options
from relay.smtp.session import Session
from relay.submission import Services
from relay.tls import CertificateStore

log = structlog.get_logger(__name__)


class Server:
    """Serves the listening sockets, one greenlet a connection."""

    #: Seconds kept back from the drain, for what has to be done after the last connection: jobs, error reports.
    drain_reserve = 2.0
    #: Seconds that a greenlet gets to put its connection away when the time for the drain is over.
    kill_seconds = 1.0

    def __init__(self, settings: Settings, services: Services, certificate: CertificateStore | None) -> None:
        self._settings = settings
        self._services = services
        self._certificate = certificate
        self._options = Options(
            hostname=settings.hostname,
            max_message_size=settings.max_message_size_bytes,
            max_recipients=settings.max_recipients,
            recipient_rule=settings.recipients,
            allow_utf8_local_parts=settings.allow_utf8_local_parts,
            tls_available=certificate is not None,
            spool_threshold=settings.spool_threshold_bytes,
            spool_directory=settings.spool_dir,
        )
        #: How long clients may take; read at the beginning of each connection.
        self.pace = Pace(command=settings.command_timeout_seconds, handshake=settings.tls_handshake_seconds)
        self._servers: list[StreamServer] = []
        self._clients: dict[str, _Client] = {}
        self._numbers = itertools.count(1)
        self._draining = False
        self._drain_until = 0.0
        self._drain_begun = Event()

    def serve(self, listeners: Sequence[Listener]) -> None:
        """Accepts until `drain` is called, and returns when every connection has ended or the time for that is over."""
        if not self._draining:
            self._servers = [self._stream_server(listener) for listener in listeners]
            for server in self._servers:
                server.start()
            log.info("ready", connections_at_most=self._settings.max_connections, tls=self._certificate is not None)
        self._drain_begun.wait()
        self._finish()

    def drain(self) -> None:
        """Stops accepting, sends the idle away, and lets `serve` return when the busy ones have finished."""
        if self._draining:
            return
        self._draining = True
        self._drain_until = time.monotonic() + max(0.0, self._settings.drain_seconds - self.drain_reserve)
        log.info("draining", connections=len(self._clients))
        for server in self._servers:
            server.close()
        # In the hub, no greenlet runs between the look at `idle` and the throw.
        gevent.get_hub().loop.run_callback(self._dismiss_idle)
        self._drain_begun.set()

    def _stream_server(self, listener: Listener) -> StreamServer:
        def handle(sock: Any, _address: Any) -> None:
            self._handle(sock, implicit_tls=listener.implicit_tls)

        server = StreamServer(listener.socket, handle)
        # Several processes accept from one socket: whoever is free takes one client, not a hundred.
        server.max_accept = 1
        return server

    def _handle(self, sock: Any, *, implicit_tls: bool) -> None:
        if self._draining or len(self._clients) >= self._settings.max_connections:
            if not implicit_tls:
                _turn_away(sock, replies.SHUTTING_DOWN if self._draining else replies.TOO_MANY_CONNECTIONS)
            return
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        connection_id = f"{os.getpid():x}-{next(self._numbers):x}"
        journal = Journal(connection_id)
        session = Session(self._options, self._services, connection_id)
        connection = Connection(sock, session, journal, self.pace, self._tls_context, lambda: self._draining)
        self._clients[connection_id] = _Client(connection, gevent.getcurrent())
        journal.opened()
        try:
            connection.run(implicit_tls=implicit_tls)
        except Exception as error:  # noqa: BLE001 - the top of the greenlet: past it, nobody would hear of the error
            journal.failed(error)
        finally:
            del self._clients[connection_id]
            journal.closed()

    def _tls_context(self) -> ssl.SSLContext:
        if self._certificate is None:
            raise AssertionError("TLS without a certificate")
        return self._certificate.context

    def _dismiss_idle(self) -> None:
        for client in list(self._clients.values()):
            if client.connection.idle:
                client.greenlet.throw(Drain)

    def _finish(self) -> None:
        # Clients that were accepted at the last moment have greenlets that have not begun.
        gevent.sleep(0)
        time_left = max(0.0, self._drain_until - time.monotonic())
        gevent.joinall([client.greenlet for client in self._clients.values()], timeout=time_left)
        if self._clients:
            log.warning("connections cut off at the end of the drain", connections=list(self._clients))
            gevent.killall([client.greenlet for client in self._clients.values()], timeout=self.kill_seconds)


@dataclass(frozen=True, slots=True)
class _Client:
    connection: Connection
    greenlet: gevent.Greenlet


def _turn_away(sock: Any, reply: replies.Reply) -> None:
    """One line without a greenlet's worth of dialogue; the send buffer of a new socket always has room for it."""
    try:
        sock.settimeout(1.0)
        sock.sendall(reply.encode())
    except OSError:
        # Gone already.
        return
    finally:
        sock.close()
