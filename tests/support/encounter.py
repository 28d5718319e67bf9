"""A dialogue within the process of the test: a real `Connection` over a socket pair, for many thousand of them."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
import gevent.socket

from config.settings import RecipientRule
from relay.core.outcomes import LoginFailure
from relay.core.records import ApiKey
from relay.core.tls_memory import put_tls_into_memory
from relay.smtp import replies
from relay.smtp.connection import Connection, Pace
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.session import Session
from relay.smtp.submission import Limits, Login, Submission, Verdict
from relay.smtp.transport import PlainWire, Wire
from tests.support.unlimited import Unlimited

# As in the processes of the relay.
put_tls_into_memory()

OPTIONS = Options("relay.test", max_message_size=2000, max_recipients=3, spool_threshold=1000)


class Services:
    """Opens to the password `good`, stores everything but what is for `refused@…` or `bug@…`."""

    def __init__(self) -> None:
        self.messages: list[tuple[tuple[str, ...], RecipientRule, bytes]] = []

    def authenticate(self, password: str) -> Login | LoginFailure:
        if password == "bug":
            raise RuntimeError("a bug in authenticate")
        return (
            Login("0" * 64, ApiKey("key", "user", "full_access", None))
            if password == "good"
            else LoginFailure.WRONG_KEY
        )

    def submit(self, submission: Submission) -> Verdict:
        if submission.recipients[0].startswith("bug@"):
            raise RuntimeError("a bug in accept")
        if submission.recipients[0].startswith("refused@"):
            return Verdict(replies.NO_SENDER, "refused")
        self.messages.append((submission.recipients, submission.rule, submission.body.read()))
        return Verdict(replies.queued(str(len(self.messages))), "queued", str(len(self.messages)))


class ConnectionLog:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.authentications: list[int] = []
        self.verdicts: list[Verdict] = []
        self.refusals: list[int] = []

    def authenticated(self, reply: Reply) -> None:
        self.authentications.append(reply.code)

    def message(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def error_reply(self, reply: Reply) -> None:
        self.refusals.append(reply.code)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def tls_failed(self, error: OSError) -> None:
        self.errors.append(error)


@dataclass
class Encounter:
    """One connection, the client's end in the hands of the test."""

    options: Options = OPTIONS
    pace: Pace = field(default_factory=Pace)
    draining: bool = False
    limits: Limits = field(default_factory=Unlimited)
    #: What the connection makes of the server's socket.
    wire: Callable[[Any], Wire] = PlainWire

    def __post_init__(self) -> None:
        self.services = Services()
        self.connection_log = ConnectionLog()
        self.client, self._server = gevent.socket.socketpair()
        self.client.settimeout(20.0)
        session = Session(self.options, self.services, self.limits, "test")
        self.connection = Connection(
            self._server,
            session,
            self.connection_log,
            self.pace,
            tls_context=_no_certificate,
            wire=self.wire,
        )
        self.connection.draining = self.draining
        self.greenlet = gevent.spawn(self.connection.run)

    def send(self, octets: bytes) -> None:
        """Sends, and waits until the server has taken it off the socket (or closed it)."""
        try:
            self.client.sendall(octets)
        except (BrokenPipeError, ConnectionResetError):
            return
        while not self.greenlet.dead and _unread(self._server):
            # Not 0: that would go round for 5 ms before gevent looks at sockets again.
            gevent.sleep(1e-6)

    def half_close(self) -> None:
        """The client has no more to say."""
        self.client.shutdown(gevent.socket.SHUT_WR)

    def rest_until_closed(self) -> bytes:
        """All that the server says until it closes its half by itself: the client's stays open."""
        said = b""
        while octets := self.client.recv(65536):
            said += octets
        self.client.close()
        return said

    def rest(self) -> bytes:
        """All that the server says until the connection is closed."""
        said = b""
        try:
            while octets := self.client.recv(65536):
                said += octets
        except ConnectionResetError:
            # The server closed over octets that came behind its last word.
            pass
        self.greenlet.join(20.0)
        assert self.greenlet.dead
        self.client.close()
        return said


def converse(pieces: Sequence[bytes], **options: Any) -> tuple[bytes, Encounter]:
    """All that the server says when the pieces come one by one and the client then closes its half."""
    encounter = Encounter(**options)
    for piece in pieces:
        encounter.send(piece)
    encounter.half_close()
    return encounter.rest(), encounter


def _no_certificate() -> Any:
    raise AssertionError("TLS without a certificate")


def _unread(sock: Any) -> int:
    if sock.fileno() < 0:
        return 0
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])
