"""Sockets and connections: takes in as many clients as may be, and lets them finish when the process ends."""

from __future__ import annotations

import itertools
import os
import ssl
import time
from collections.abc import Sequence
from functools import partial
from socket import IPPROTO_TCP, TCP_NODELAY

import gevent
import gevent.socket
import structlog
from gevent.event import Event
from greenlet import greenlet

from config.settings import Settings
from relay.core import metrics
from relay.core.frozen import frozen
from relay.limits.client import ProcessLimits
from relay.server.accept_loop import AcceptLoop, Reserve, turn_away
from relay.server.certificate import CertificateStore
from relay.server.connection_log import ConnectionLog
from relay.server.connection_table import ConnectionTable
from relay.server.handshakes import HandshakeTurns
from relay.server.logged_address import LoggedAddress
from relay.server.sockets import Listener
from relay.server.summaries import Summaries
from relay.server.trusted_proxies import Proxies
from relay.smtp import replies
from relay.smtp.connection import Connection, Drain, Pace
from relay.smtp.options import Options
from relay.smtp.proxy_protocol import NotProxied
from relay.smtp.replies import Reply
from relay.smtp.session import Session
from relay.smtp.submission import Services

log = structlog.get_logger(__name__)


class Server:
    """Serves the listening sockets, one greenlet a connection."""

    #: Seconds kept back from the drain, for what has to be done after the last connection: jobs, error reports.
    drain_reserve = 2.0
    #: Seconds that a greenlet gets to put its connection away when the time for the drain is over.
    kill_seconds = 1.0

    def __init__(
        self,
        settings: Settings,
        services: Services,
        limits: ProcessLimits,
        *,
        certificate: CertificateStore | None,
        table: ConnectionTable | None = None,
    ) -> None:
        """`services`: what clients get, as far as `limits` let them. `table` counts the connections of all workers;
        None: there are no others."""
        self._settings = settings
        self._services = services
        self._limits = limits
        self._certificate = certificate
        self._table = ConnectionTable(None, 0, 1, settings.max_connections) if table is None else table
        self._proxies = Proxies(settings.proxy_protocol)
        self._options = Options(
            hostname=settings.hostname,
            max_message_size=settings.max_message_size_bytes,
            max_recipients=settings.max_recipients,
            recipient_rule=settings.recipients,
            allow_utf8_local_parts=settings.allow_utf8_local_parts,
            tls_available=certificate is not None,
            max_before_auth=settings.max_commands_before_auth,
            max_messages=settings.max_messages_per_connection,
            spool_threshold=settings.spool_threshold_bytes,
            spool_directory=settings.spool_dir,
        )
        #: How long clients may take; read at the beginning of each connection.
        self.pace = Pace(
            command=settings.command_timeout_seconds,
            login=settings.login_timeout_seconds,
            handshake=settings.tls_handshake_seconds,
            connection=settings.connection_seconds,
            data_rate=settings.min_rate,
        )
        self._accept_loops: list[AcceptLoop] = []
        self._clients: dict[str, _Client] = {}
        #: Whose proxy has not named them yet.
        self._arriving: set[greenlet] = set()
        self._numbers = itertools.count(1)
        self._handshakes = HandshakeTurns()
        self._summaries = Summaries()
        self._draining = False
        self._drain_until = 0.0
        self._drain_begun = Event()

    def serve(self, listeners: Sequence[Listener]) -> None:
        """Accepts until `drain` is called, and returns when every connection has ended or the time for that is over."""
        if not self._draining:
            reserve = Reserve()
            self._accept_loops = [self._accept_loop(listener, reserve) for listener in listeners]
            for accept_loop in self._accept_loops:
                accept_loop.start()
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
        for accept_loop in self._accept_loops:
            accept_loop.close()
        for client in self._clients.values():
            client.connection.draining = True
        # In the hub, no greenlet runs between the look at `idle` and the throw.
        gevent.get_hub().loop.run_callback(self._dismiss_idle)
        self._drain_begun.set()

    def _accept_loop(self, listener: Listener, reserve: Reserve) -> AcceptLoop:
        return AcceptLoop(listener, partial(self._handle, listener.implicit_tls), reserve, self._replace_process)

    def _replace_process(self) -> None:
        """A process that can't accept clients ends as by SIGTERM: its successor gets the sockets anew."""
        log.critical("listener_lost")
        self.drain()

    def _handle(self, implicit_tls: bool, sock: gevent.socket.socket, peer: tuple[str, *tuple[int, ...]]) -> None:
        slot = self._table.enter()
        try:
            proxied = self._proxies.trust(peer[0])
            client = None if proxied else peer[0]
            refusal = None if slot is not None else _FULL
            if proxied and refusal is None:
                try:
                    client = self._named_by_proxy(sock)
                except NotProxied as error:
                    log.debug("proxy_header_refused", reason=str(error))
                    refusal = _NOT_PROXIED
            origin = self._limits.origins.of(client or peer[0])
            logged = LoggedAddress(client, self._settings.log_client_addresses)
            if slot is not None and refusal is None:
                refusal = self._refusal(origin, slot)
            if refusal is None:
                self._converse(sock, origin, logged, implicit_tls=implicit_tls)
            else:
                metrics.CONNECTIONS_REFUSED.labels(refusal.reason).inc()
                self._summaries.write(
                    log.info, "client_turned_away", origin, client=logged.of_failure(), reason=refusal.reason
                )
                turn_away(sock, None if implicit_tls else refusal.reply)
        finally:
            if slot is not None:
                self._table.leave(slot)

    def _named_by_proxy(self, sock: gevent.socket.socket) -> str | None:
        """The address of the client that a trusted proxy names; None where it names none. Raises NotProxied."""
        self._arriving.add(gevent.getcurrent())
        try:
            return self._proxies.client_of(sock)
        finally:
            self._arriving.remove(gevent.getcurrent())

    def _refusal(self, origin: bytes, slot: int) -> _Refusal | None:
        """Why a client from there may not come in, if it may not. Counts it."""
        if self._draining:
            return _DRAINING
        if self._table.name(slot, origin) > self._settings.max_connections_per_address:
            return _CROWDED
        return None

    def _converse(
        self, sock: gevent.socket.socket, origin: bytes, client: LoggedAddress, *, implicit_tls: bool
    ) -> None:
        connection_id = f"{os.getpid():x}-{next(self._numbers):x}"
        connection_log = ConnectionLog(connection_id, origin, self._summaries, client)
        limits = self._limits.of_client(origin, client.of_failure())
        session = Session(self._options, self._services, limits, connection_id)
        turn = partial(self._handshakes.turn, origin)
        connection = Connection(
            sock, session, connection_log, self.pace, tls_context=self._tls_context, handshake_turn=turn
        )
        connection.draining = self._draining
        self._clients[connection_id] = _Client(connection, gevent.getcurrent())
        connection_log.opened()
        try:
            sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
            connection.run(implicit_tls=implicit_tls)
        except Exception as error:  # noqa: BLE001 - the top of the greenlet: beyond it the error would be lost
            connection_log.failed(error)
        finally:
            del self._clients[connection_id]
            connection_log.closed()

    def _tls_context(self) -> ssl.SSLContext:
        if self._certificate is None:
            raise AssertionError("TLS without a certificate")
        return self._certificate.context

    def _dismiss_idle(self) -> None:
        for client in list(self._clients.values()):
            if client.connection.idle:
                client.serving.throw(Drain)

    def _finish(self) -> None:
        # Clients that were accepted at the last moment have greenlets that have not begun.
        gevent.sleep(0)
        time_left = max(0.0, self._drain_until - time.monotonic())
        greenlets = [*self._arriving, *(client.serving for client in self._clients.values())]
        gevent.joinall(greenlets, timeout=time_left)
        self._summaries.tell()
        if self._clients:
            log.warning("connections_cut_off", connections=list(self._clients))
            gevent.killall([client.serving for client in self._clients.values()], timeout=self.kill_seconds)


@frozen
class _Client:
    connection: Connection
    serving: greenlet


@frozen
class _Refusal:
    """Why a client is turned away: for the metric, and for the client."""

    reason: str
    reply: Reply


_FULL = _Refusal("full", replies.TOO_MANY_CONNECTIONS)
_CROWDED = _Refusal("address", replies.TOO_MANY_FROM_ADDRESS)
_NOT_PROXIED = _Refusal("proxy", replies.NOT_PROXIED)
_DRAINING = _Refusal("draining", replies.SHUTTING_DOWN)
