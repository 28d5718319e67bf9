"""A listening socket at work: takes clients as they come, also when the process is out of file descriptors.

gevent's server would print a traceback for each failed accept and leave the clients waiting without a word. Here a
client that can't be served gets 421, by a descriptor that is kept for that; when not even that works, nothing is
accepted for a moment. After some errors gevent's server would close the socket for good, and the process would go on
without clients. Here the socket is made to listen again, or the process ends because it has lost it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import Final

import gevent.socket
import structlog
from gevent import monkey
from gevent.server import StreamServer

from relay.core import metrics
from relay.server.sockets import BACKLOG, Listener
from relay.smtp import replies
from relay.smtp.replies import Reply

log = structlog.get_logger(__name__)

_OUT_OF_DESCRIPTORS: Final = frozenset((errno.EMFILE, errno.ENFILE))

#: gevent's own way to close waits for the next turn of the loop.
_close_now: Final[Callable[[int], None]] = monkey.get_original("os", "close")


class Reserve:
    """A descriptor that is open for nothing, so that closing it lets one more client be answered with 421."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.refill()

    def refill(self) -> bool:
        """Opens the reserve if it is spent; whether there is one now."""
        if self._descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor is not None

    def spend(self) -> bool:
        """Closes the reserve; whether that made a descriptor free."""
        if self._descriptor is None:
            return False
        _close_now(self._descriptor)
        self._descriptor = None
        return True


class AcceptLoop(StreamServer):
    """Accepts from one listener and calls `handle(socket, address of the peer)` in a greenlet for each client."""

    #: Several processes accept from one socket: one that is free takes one client, not a hundred.
    max_accept = 1
    #: Seconds for which nothing is accepted after the kernel would not let us.
    rest_seconds = 0.1
    #: Seconds between two log lines about the same error.
    report_seconds = 10.0

    def __init__(
        self, listener: Listener, handle: Callable[[object, object], None], reserve: Reserve, lost: Callable[[], None]
    ) -> None:
        """`lost` is called, in the hub, when this process can't accept from the socket any more."""
        super().__init__(listener.socket, handle)
        self._lost = lost
        self._implicit_tls = listener.implicit_tls
        self._reserve = reserve
        self._report_next = 0.0

    # The stubs leave out that it may be None.
    def do_read(self) -> tuple[gevent.socket.socket, object] | None:  # type: ignore[override]
        """The next client; None when there is none that can be served."""
        try:
            client: tuple[gevent.socket.socket, object] | None = super().do_read()
        except OSError as error:
            if error.errno in self.fatal_errors:
                self._listen_again(error)
            elif error.errno in _OUT_OF_DESCRIPTORS:
                self._turn_one_away(error)
            elif error.errno != errno.ECONNABORTED:
                # Out of memory, most likely.
                self._rest(error)
            return None
        self._reserve.refill()
        return client

    def _turn_one_away(self, error: OSError) -> None:
        """Says 421 to the client that we have no descriptor for."""
        if not self._reserve.spend():
            self._rest(error)
            return
        self._report(error)
        try:
            client = super().do_read()
        except OSError as again:
            # Another process was quicker to use what we set free.
            self._rest(again)
            return
        if client is not None:
            metrics.CONNECTIONS_REFUSED.labels("descriptors").inc()
            descriptor = client[0].detach()
            with contextlib.suppress(OSError):
                if not self._implicit_tls:
                    os.write(descriptor, replies.TOO_MANY_CONNECTIONS.encode())
            _close_now(descriptor)
        self._reserve.refill()

    def _listen_again(self, error: OSError) -> None:
        """Repairs a socket that was shut down, as each process that shares it can do. Other damage is beyond repair."""
        try:
            self.socket.listen(BACKLOG)
            if self.socket.getsockname() != self.address:
                # The kernel gave the port back, or it is another socket: no client will come to this one.
                raise error
        except OSError as beyond_repair:
            self.stop_accepting()
            self._report(beyond_repair)
            self._lost()
        else:
            self._rest(error)

    def _rest(self, error: OSError) -> None:
        """Accepts nothing for a moment: the socket stays readable, and to try again at once would be a busy loop."""
        self._reserve.refill()
        self._report(error)
        self.stop_accepting()
        self._timer = self.loop.timer(self.rest_seconds)
        self._timer.start(self._start_accepting_if_started)  # type: ignore[attr-defined,call-arg]  # as gevent does

    def _report(self, error: OSError) -> None:
        now = time.monotonic()
        if now >= self._report_next:
            self._report_next = now + self.report_seconds
            log.error("accept_failed", reason=errno.errorcode.get(error.errno or 0, "unknown"))


def turn_away(sock: gevent.socket.socket, reply: Reply | None) -> None:
    """Closes a connection with one line, without waiting: the send buffer of a new socket always has room for that.

    None where the client would not understand a line: it waits for a TLS handshake.
    """
    try:
        if reply is not None:
            sock.setblocking(False)
            sock.send(reply.encode())
    except OSError:
        # Gone already.
        return
    finally:
        sock.close()
