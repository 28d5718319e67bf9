"""One connection from banner to close: the only place that writes to a client, sets its deadlines, counts and logs.

Replies are collected and leave in one segment, just before the next read that could block: a pipelined batch is
answered by one packet (RFC 2920), and what the client sent before it closed its half is answered all the same.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import SHUT_WR
from typing import Any, Protocol

from gevent import Timeout

from relay.smtp import replies
from relay.smtp.framing import DataEnd, Flaw, Framing
from relay.smtp.replies import Reply
from relay.smtp.session import LINE_LIMIT, Expects, Session
from relay.spool import NoRoom
from relay.submission import Verdict


class Drain(BaseException):
    """Thrown into an idle connection when the process stops; no Exception, so that nothing takes it for an error."""


class _Ended(Exception):
    """The conversation can't go on: the client is gone (no farewell), or took too long."""

    def __init__(self, farewell: Reply | None = None) -> None:
        super().__init__()
        self.farewell = farewell


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a client may take, in seconds."""

    #: For the next command, from our last reply to its CRLF.
    command: float = 60.0
    handshake: float = 10.0
    #: For a whole connection.
    connection: float = 3600.0
    #: In message data, before the minimum rate counts.
    data_grace: float = 30.0
    #: Octets a second, on average over a message.
    data_rate: float = 1000.0


class Journal(Protocol):
    """Where a connection reports what happened. Receives no address, no subject, no text of a message."""

    def authenticated(self, reply: Reply) -> None:
        """An AUTH ended."""

    def message(self, verdict: Verdict) -> None:
        """A message was answered."""

    def error_reply(self, reply: Reply) -> None:
        """A command was refused."""

    def failed(self, error: Exception) -> None:
        """A bug, or trouble that nobody foresaw: for the log and the error tracker."""

    def tls_failed(self, error: OSError) -> None:
        """A TLS handshake did not succeed."""


class Connection:
    """Runs a session over a socket. `socket` is gevent's, or an SSLSocket of gevent's after a handshake."""

    #: Octets asked of the kernel at once. Larger costs memory per connection that sends, smaller costs calls.
    receive_size = 65536
    #: Seconds that a client gets to read what is due to it before it is cut off.
    linger_seconds = 2.0

    def __init__(
        self,
        sock: Any,
        session: Session,
        journal: Journal,
        pace: Pace,
        tls_context: Callable[[], ssl.SSLContext | None],
        draining: Callable[[], bool],
    ) -> None:
        self._socket = sock
        self._session = session
        self._journal = journal
        self._pace = pace
        self._tls_context = tls_context
        self._draining = draining
        self._framing = Framing(self._receive)
        self._unsent: list[bytes] = []
        self._born = self._deadline = time.monotonic()
        #: When the client was told to send message data; None between messages.
        self._data_began: float | None = None
        self._received = 0
        self._secure = False
        #: Between commands with nothing buffered: the moment at which a `Drain` loses nothing.
        self.idle = False

    def run(self, *, implicit_tls: bool = False) -> None:
        """The whole connection; returns when the socket is closed. Nothing but a bug raises."""
        try:
            if implicit_tls and not self._start_tls():
                return
            self._converse()
        except Drain:
            self._farewell(replies.SHUTTING_DOWN)
        except _Ended as ended:
            if ended.farewell is not None:
                self._farewell(ended.farewell)
        finally:
            self._session.close()
            self._close()

    def _converse(self) -> None:
        session = self._session
        self._say(session.greeting())
        while True:
            if self._draining() and session.expects is Expects.COMMAND and self._framing.empty:
                raise Drain
            try:
                reply = self._step()
            except _Ended:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the client hears 451 and the connection goes on
                self._journal.failed(error)
                reply = session.fail(replies.TRY_LATER)
            if reply is None:
                self._flush()
                return
            self._report()
            self._say(reply)
            if reply.closes:
                self._flush()
                if reply is not replies.BYE:
                    self._linger()
                return
            if session.expects is Expects.TLS and not self._start_tls():
                return

    def _step(self) -> Reply | None:
        """Reads what the session expects, and has it answered. None when the stream ended."""
        session = self._session
        reply: Reply | None = None
        while reply is None:
            if session.expects is Expects.DATA:
                return self._read_data()
            if session.expects is Expects.CHUNK:
                return self._read_chunk()
            self._begin_command()
            line = self._framing.line(LINE_LIMIT)
            if line is None:
                return None
            reply = session.flawed_line(line) if isinstance(line, Flaw) else session.line(line)
        return reply

    def _read_data(self) -> Reply | None:
        session = self._session
        self._begin_data()
        body = session.new_body()
        try:
            end = self._framing.data(body, session.max_message_size)
        except NoRoom as error:
            self._journal.failed(error)
            return session.fail(replies.NO_ROOM)
        except BaseException:
            body.close()
            raise
        if end is DataEnd.CUT_OFF:
            body.close()
            return None
        return session.end_of_data(end, body)

    def _read_chunk(self) -> Reply | None:
        session = self._session
        self._begin_data()
        try:
            complete = self._framing.chunk(session.chunk_size, session.chunk_sink())
        except NoRoom as error:
            self._journal.failed(error)
            return session.fail(replies.NO_ROOM)
        return session.end_of_chunk() if complete else None

    # Reading, and by when

    def _begin_command(self) -> None:
        self._data_began = None
        self._deadline = min(time.monotonic() + self._pace.command, self._born + self._pace.connection)

    def _begin_data(self) -> None:
        self._data_began = time.monotonic()
        self._received = 0

    def _receive(self) -> bytes:
        self._flush()
        now = time.monotonic()
        if self._data_began is not None:
            earned = self._pace.data_grace + self._received / self._pace.data_rate
            self._deadline = min(self._data_began + earned, self._born + self._pace.connection)
        if self._deadline <= now:
            raise _Ended(replies.TIMED_OUT)
        self._socket.settimeout(self._deadline - now)
        self.idle = self._data_began is None and self._session.expects is Expects.COMMAND and self._framing.empty
        try:
            octets: bytes = self._socket.recv(self.receive_size)
        except TimeoutError as error:
            raise _Ended(replies.TIMED_OUT) from error
        except OSError as error:
            raise _Ended from error
        finally:
            self.idle = False
        self._received += len(octets)
        return octets

    # Writing

    def _say(self, reply: Reply) -> None:
        self._unsent.append(reply.encode())
        if not reply.positive:
            self._journal.error_reply(reply)

    def _flush(self) -> None:
        if self._unsent:
            octets = b"".join(self._unsent)
            self._unsent.clear()
            self._socket.settimeout(self._pace.command)
            try:
                self._socket.sendall(octets)
            except OSError as error:
                # Whatever the client was to hear stays true: a row that is committed is delivered.
                raise _Ended from error

    def _report(self) -> None:
        session = self._session
        if session.auth_reply is not None:
            self._journal.authenticated(session.auth_reply)
            session.auth_reply = None
        if session.verdict is not None:
            self._journal.message(session.verdict)
            session.verdict = None

    # TLS and the end

    def _start_tls(self) -> bool:
        """Exchanges the socket for one that speaks TLS. False: no handshake came about in time."""
        context = self._tls_context()
        self._flush()
        # Whatever a third party wrote behind STARTTLS in the clear must not be taken for the client's (RFC 3207).
        self._framing.discard()
        if context is None:
            return False
        try:
            self._socket.settimeout(self._pace.handshake)
            with Timeout(self._pace.handshake, TimeoutError):
                self._socket = context.wrap_socket(self._socket, server_side=True)
        except OSError as error:
            self._journal.tls_failed(error)
            return False
        self._secure = True
        self._session.tls_started()
        return True

    def _farewell(self, reply: Reply) -> None:
        """A last line to a client that did not ask for one, if it still listens."""
        with contextlib.suppress(_Ended):
            self._say(reply)
            self._flush()

    def _linger(self) -> None:
        """Reads what the client still sends: a close over unread octets would destroy the reply on its way."""
        with contextlib.suppress(OSError), Timeout(self.linger_seconds, False):
            if not self._secure:
                self._socket.shutdown(SHUT_WR)
            while self._socket.recv(self.receive_size):
                pass

    def _close(self) -> None:
        if self._secure:
            # Our close_notify, without waiting for the client's: some never send one.
            with contextlib.suppress(OSError, ValueError):
                self._socket.settimeout(0.0)
                self._socket.unwrap()
        with contextlib.suppress(OSError):
            self._socket.close()
