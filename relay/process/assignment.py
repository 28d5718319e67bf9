"""What the master gives a worker to work with. Nothing but the standard library: the master imports this."""

from __future__ import annotations

import socket

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from typing import Final

    from relay.process.handover import Handover
    from relay.process.heartbeat import Heartbeats

#: The longest encoded certificate pair, with room to spare; octets. See `relay.server.certificate.MAX_FILE_OCTETS`.
_MOST_CERTIFICATE_OCTETS: Final = 200_000


class Assignment:
    """One worker's."""

    def __init__(
        self,
        index: int,
        received: Handover,
        *,
        service: str,
        certificate: bytes,
        lifeline: int,
        heartbeats: Heartbeats,
        keeper: int,
    ) -> None:
        #: Counts the workers from 0.
        self.index = index
        #: Names this start of the service: the process that had this index in it before has ended.
        self.service = service
        #: As JSON. Holds secrets.
        self.settings = received.settings
        #: Listening descriptors, each with whether it is for implicit TLS.
        self.listeners = received.listeners
        #: Shared memory: see `relay.server.connection_table`.
        self.table = received.table
        #: The last pair that was good (`relay.server.certificate.Pair`, encoded); empty without TLS.
        self.certificate = certificate
        #: The reading end of a pipe that ends with the master: see `relay.process.signals`.
        self.lifeline = lifeline
        self.heartbeats = heartbeats
        #: A datagram socket that does not block: a certificate pair sent to it is what the next worker is given.
        self.keeper = keeper


class CertificateKeeper:
    """The last certificate pair that was good, in the master: a worker that loads a newer one sends it here.

    In memory alone. Whatever becomes of the files, and of the worker that read them, the next worker is given this.
    """

    def __init__(self, pair: bytes) -> None:
        self.pair = pair
        self._kept, self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._kept, self._keeper):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MOST_CERTIFICATE_OCTETS)

    def fileno(self) -> int:
        """For select(): whether there is a newer pair."""
        return self._kept.fileno()

    @property
    def workers_end(self) -> int:
        """The descriptor that workers send to, one datagram a pair."""
        return self._keeper.fileno()

    def take(self) -> None:
        """Takes what workers sent."""
        try:
            while octets := self._kept.recv(2 * _MOST_CERTIFICATE_OCTETS):
                self.pair = octets
        except OSError:
            return  # nothing more for now

    def leave(self) -> None:
        """In a child: closes the end that is the master's alone."""
        self._kept.close()
