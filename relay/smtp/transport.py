"""The octets of one connection, in and out, at the least cost that gevent allows."""

from __future__ import annotations

import os
import socket
import time
from abc import ABC, abstractmethod
from typing import Final, cast

import gevent
import gevent.socket

from relay.core.tls_memory import PIECE, tls_of
from relay.smtp.timeouts import NEVER, WAITS, Waiter

#: Octets asked of the kernel at once. Larger costs memory per connection that sends, smaller costs calls.
RECEIVE_SIZE: Final = 65536
#: The same where commands are expected: whatever is asked for is allocated first.
COMMAND_SIZE: Final = 4096
#: What a packet counts for, besides its octets, until the others have their turn.
_RECEIVE_COST: Final = 4096

_READABLE: Final = 1
#: Linux's way to acknowledge now what has arrived; elsewhere acknowledgements take the time that they take.
_TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


def acknowledge(sock: gevent.socket.socket) -> None:
    """Keeps a client from waiting 40 ms: its kernel holds back a small packet until the one before is acknowledged
    (Nagle), ours holds back an acknowledgement in the hope of a reply to go with it; within a line or
    message data none comes.
    """
    if _TCP_QUICKACK is not None:
        # perf: each piece of a large message pays it; contextlib.suppress takes 0.5 µs: ./scripts/bench --only cost
        try:  # noqa: SIM105 - see above
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)
        except OSError:  # a courtesy, which sockets other than TCP's don't know
            pass


class Wire(Waiter, ABC):
    """A connection, in the clear or under TLS. Used by the greenlet that made it, until `close`.

    Both ways raise OSError when the connection is broken, and Overdue when it takes too long.
    """

    __slots__ = ("_since_pause", "_socket", "_unacknowledged", "reading")

    def __init__(self, sock: gevent.socket.socket) -> None:
        """`sock`: a socket of gevent's without a time limit, which stays open until `close`."""
        super().__init__()
        self._socket = sock
        #: Whether the greenlet waits for octets just now.
        self.reading = False
        #: Something arrived that no reply has acknowledged by the way.
        self._unacknowledged = False
        self._since_pause = 0
        WAITS.add(self)

    def close(self) -> None:
        """Lets go of the socket, which may be used in other ways, or closed, then."""
        WAITS.remove(self)

    def receive(self, size: int, until: float) -> bytes:
        """The next octets, `size` at most, or none at the end of the stream. `until`: a moment of time.monotonic()."""
        if self._unacknowledged:
            acknowledge(self._socket)
        octets = self._read(size, until)
        self._unacknowledged = True
        self._since_pause += len(octets) + _RECEIVE_COST
        if self._since_pause >= RECEIVE_SIZE:
            # A switch happens only when there is nothing to read, and a client that is as quick as we are always has
            # something: the others get their turn. Not 0: gevent then runs the greenlets that sleep for 0 in turn, for
            # 5 ms, before it looks at sockets again.
            self._since_pause = 0
            gevent.sleep(1e-6)
        return octets

    @abstractmethod
    def send(self, octets: bytes, seconds: float) -> None:
        """Sends all of it, within so many seconds."""

    @abstractmethod
    def _read(self, size: int, until: float) -> bytes:
        """As `receive`."""

    def _send_all(self, octets: bytes, seconds: float) -> None:
        """As `send`, where the client doesn't take all of it at once."""
        self.until = time.monotonic() + seconds
        try:
            self._send_rest(octets)
        finally:
            self.until = NEVER

    def _send_rest(self, octets: bytes) -> None:
        """Sends all of it, as it is."""
        self._socket.sendall(octets)


class PlainWire(Wire):
    """A connection in the clear: no detour through gevent's sockets, for a tenth of the CPU of a small mail.

    Their `recv` tries first, which fails whenever the client waits for our reply, and then starts and stops a watcher;
    this one's stays started from wait to wait. Their `sendall` asks for the size of the send buffer first.
    """

    __slots__ = ("_descriptor", "_hub", "_started", "_unread", "_watcher")

    def __init__(self, sock: gevent.socket.socket) -> None:
        """As Wire."""
        self._descriptor: int = sock.fileno()
        self._hub = gevent.get_hub()
        self._watcher = self._hub.loop.io(self._descriptor, _READABLE)
        super().__init__(sock)
        self._started = False
        #: There may be more to read than was asked for.
        self._unread = False

    def close(self) -> None:
        """As Wire."""
        super().close()
        self._watcher.stop()
        self._watcher.close()

    def send(self, octets: bytes, seconds: float) -> None:
        """As Wire."""
        try:
            sent = os.write(self._descriptor, octets)
        except BlockingIOError:
            sent = 0
        if sent < len(octets):
            self._send_all(octets[sent:], seconds)
        self._unacknowledged = False

    def _read(self, size: int, until: float) -> bytes:
        while True:
            # There is nothing to be had yet, as a rule: clients wait for the reply that has just gone out.
            if not self._unread:
                self._wait(until)
            try:
                octets = os.read(self._descriptor, size)
            except BlockingIOError:
                self._unread = False
                continue
            self._unread = len(octets) == size
            return octets

    def _wait(self, until: float) -> None:
        """Returns when there is something to read, or the stream has ended, or sometimes for no reason."""
        if not self._started:
            self._started = True
            self._watcher.start(self._ready)
        self.until = until
        self.reading = True
        try:
            self._hub.switch()
        finally:
            self.reading = False
            self.until = NEVER
        # The others have just had their turn.
        self._since_pause = 0

    def _ready(self) -> None:
        # Called in the hub, again and again for as long as the octets are not read.
        if self.reading:
            self.greenlet.switch()
        else:
            self._watcher.stop()
            self._started = False


class TlsWire(PlainWire):
    """A connection under TLS, which is in memory (`relay.core.tls_memory`): what is encrypted comes and goes as octets
    in the clear do.
    """

    __slots__ = ("_tls",)

    def __init__(self, sock: gevent.socket.socket) -> None:
        """`sock`: one under TLS, after its handshake."""
        super().__init__(sock)
        self._tls = tls_of(sock)

    def send(self, octets: bytes, seconds: float) -> None:
        """As Wire."""
        super().send(self._tls.encrypt(octets), seconds)

    def _send_rest(self, octets: bytes) -> None:
        self._tls.unsent = octets
        while not self._tls.flushed():
            gevent.socket.wait_write(self._descriptor)

    def _read(self, size: int, until: float) -> bytes:
        tls = self._tls
        while True:
            if tls.holds_more():
                octets = tls.decrypt(size)
                if octets is not None:
                    return cast("bytes", octets)
                # Messages without content, or a part of one: the others have their turn before the next piece.
                self._unread = False
            piece = super()._read(PIECE, until)
            if not piece:
                return b""
            # `receive` counts the content, which may be an octet.
            self._since_pause += len(piece)
            tls.give(piece)
