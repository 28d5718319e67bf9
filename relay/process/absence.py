"""While no worker serves, the master answers clients in their place, so that none waits for a greeting that does not
come."""

from __future__ import annotations

import socket
import time

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

#: A worker that ended is replaced sooner than that, and clients wait in the kernel's queue meanwhile; seconds.
PATIENCE_SECONDS: Final = 3.0
#: RFC 5321 section 3.8: a reply in place of the greeting.
REPLY: Final = b"421 4.3.2 Service not available, try again later\r\n"
#: Clients that are answered at one turn.
_AT_ONCE: Final = 200
#: No client is answered for so long after an error of the system: what waits stays ready for select(); seconds.
REST_SECONDS: Final = 1.0


class Absence:
    """Knows for how long no worker has served."""

    def __init__(self, listeners: Sequence[tuple[int, bool]]) -> None:
        """`listeners`: descriptors of non-blocking sockets, each with whether it is for implicit TLS."""
        self._listeners = listeners
        self._since: float | None = time.monotonic()
        self._rest_until = 0.0
        #: Copies of the listeners, while there is a need for them.
        self._open: dict[int, tuple[socket.socket, bool]] = {}

    def attend(self, served: bool) -> None:
        """To be called at least once a second with whether any worker serves."""
        if served:
            self.end()
        elif self._since is None:
            self._since = time.monotonic()

    def descriptors(self) -> list[int]:
        """For select(): where clients wait that are to be turned away."""
        now = time.monotonic()
        if self._since is None or now - self._since < PATIENCE_SECONDS or now < self._rest_until:
            return []
        if not self._open:
            try:
                for descriptor, implicit_tls in self._listeners:
                    copy = socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM)
                    copy.setblocking(False)
                    self._open[copy.fileno()] = copy, implicit_tls
            except OSError:  # no descriptor is left
                self._rest()
        return list(self._open)

    def present(self, ready: Sequence[int]) -> bool:
        """Whether clients wait on any of these descriptors."""
        return any(descriptor in self._open for descriptor in ready)

    def turn_away(self, ready: Sequence[int]) -> None:
        """Answers clients on these descriptors that no worker serves; those that wait for a handshake get that
        nothing."""
        for descriptor in ready:
            if descriptor in self._open:
                self._turn_away(*self._open[descriptor])

    def _turn_away(self, listener: socket.socket, implicit_tls: bool) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return  # no other client for now
            except OSError:
                self._rest()
                return
            with client:
                client.setblocking(False)
                try:
                    if not implicit_tls:
                        client.send(REPLY)
                except OSError:
                    continue  # gone already

    def _rest(self) -> None:
        self._rest_until = time.monotonic() + REST_SECONDS

    def end(self) -> None:
        """Turns no client away any more, until `attend` is called with an absence again."""
        self._since = None
        for listener, _ in self._open.values():
            listener.close()
        self._open.clear()
