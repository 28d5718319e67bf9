"""One connection from banner to close: the only place that writes to a client, sets its deadlines, counts and logs.

Replies are collected and leave in one segment, just before the next read that could block: a pipelined batch is
answered by one packet (RFC 2920), and what the client sent before it closed its half is answered all the same.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from socket import SHUT_WR
from typing import Any, Protocol

import gevent.socket
from gevent import Timeout

from relay.core.frozen import frozen
from relay.smtp import replies
from relay.smtp.command import LINE_LIMIT
from relay.smtp.framing import DataEnd, Flaw, Framing
from relay.smtp.replies import Reply
from relay.smtp.session import CHUNK, COMMAND, DATA, TLS, Session
from relay.smtp.spool import NoRoom
from relay.smtp.submission import Verdict
from relay.smtp.timeouts import Overdue
from relay.smtp.transport import COMMAND_SIZE, RECEIVE_SIZE, PlainWire, TlsWire, Wire, acknowledge


class Drain(BaseException):
    """Thrown into an idle connection when the process stops; no Exception, so that nothing takes it for an error."""


class _Ended(Exception):
    """The conversation is over: the client is gone (no farewell), or took too long."""

    def __init__(self, farewell: Reply | None = None) -> None:
        super().__init__()
        self.farewell = farewell


@frozen
class Pace:
    """How long a client may take, in seconds."""

    #: For the next command, from our last reply to its CRLF (RFC 5321 section 4.5.3.2.7), once it has authenticated.
    command: float = 300.0
    #: The same before that, where it is less; and to take a reply at any time.
    login: float = 60.0
    handshake: float = 10.0
    #: For a whole connection.
    connection: float = 3600.0
    #: From 354 to the first octet of message data, and for any pause in it (RFC 5321 section 4.5.3.2.5).
    data_pause: float = 180.0
    #: From the first octet on, before the minimum rate counts.
    data_grace: float = 30.0
    #: Octets a second, on average over a message.
    data_rate: float = 1000.0


class ConnectionLog(Protocol):
    """Where a connection reports what happened. Receives no address, no subject, no text of a message."""

    def authenticated(self, reply: Reply) -> None:
        """An AUTH ended."""

    def message(self, verdict: Verdict) -> None:
        """A message was answered."""

    def error_reply(self, reply: Reply) -> None:
        """A command was refused."""

    def failed(self, error: Exception) -> None:
        """A bug, or an error that was not foreseen: for the log and the error tracker."""

    def tls_failed(self, error: OSError) -> None:
        """A TLS handshake did not succeed."""


class Connection:
    """Runs a session over a socket of gevent's."""

    #: Replies that may wait for a common segment. What a client is answered without ever reading is bounded by it.
    most_unsent = 100
    #: Seconds that a client gets to take a farewell, and to read what is due to it before it is cut off.
    linger_seconds = 2.0

    def __init__(
        self,
        sock: gevent.socket.socket,
        session: Session,
        connection_log: ConnectionLog,
        pace: Pace,
        *,
        tls_context: Callable[[], ssl.SSLContext],
        wire: Callable[[gevent.socket.socket], Wire] = PlainWire,
        handshake_turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`tls_context` is called at each handshake. `wire` is what is made of a socket in the clear. `handshake_turn`
        is entered for each step of a handshake, and may let others go first."""
        self._socket: Any = sock  # under TLS a gevent.ssl.SSLSocket
        self._session = session
        self._connection_log = connection_log
        self._pace = pace
        self._tls_context = tls_context
        self._plain_wire = wire
        self._handshake_turn = handshake_turn
        #: The process is about to end: to be set from outside.
        self.draining = False
        self._framing = Framing(self._receive)
        self._unsent: list[bytes] = []
        self._end_by = time.monotonic() + pace.connection
        #: Seconds for the next command as things are, and for a reply to be taken.
        self._command_seconds = self._reply_seconds = min(pace.command, pace.login)
        #: For what the session expects; None until it has to be waited for.
        self._deadline: float | None = None
        self._in_data = False
        #: None while nothing can be sent: before the first octet, in a TLS handshake, after the last reply.
        self._wire: Wire | None = None
        self._secure = False

    @property
    def idle(self) -> bool:
        """Between commands with nothing buffered: the moment at which a `Drain` loses nothing."""
        wire = self._wire
        waiting = wire is not None and wire.reading and not self._in_data
        return waiting and self._session.expects is COMMAND and self._framing.empty

    def run(self, *, implicit_tls: bool = False) -> None:
        """The whole connection; returns when the socket is closed. Raises nothing."""
        linger = False
        try:
            self._socket.settimeout(None)
            if implicit_tls:
                self._start_tls()
            else:
                self._wire = self._plain_wire(self._socket)
            linger = self._converse()
        except Drain:
            self._farewell(replies.SHUTTING_DOWN)
        except _Ended as ended:
            if ended.farewell is not None:
                self._farewell(ended.farewell)
                linger = True
        except Exception as error:  # noqa: BLE001 - what the client sends next may be anything now, it has to go
            self._connection_log.failed(error)
            self._farewell(replies.FAILED)
            linger = True
        finally:
            self._session.close()
            self._close_wire()
            self._hang_up(linger=linger)

    def _converse(self) -> bool:
        """Returns whether the client may be sending still."""
        session = self._session
        self._say(session.greeting())
        while True:
            if session.expects is TLS:
                self._start_tls()
            if self.draining and session.expects is COMMAND and self._framing.empty:
                raise Drain
            reply = self._step()
            if reply is not None:
                self._say(reply)
                if reply.closes:
                    self._flush(self._reply_seconds)
                    # A positive reply that closes is the one to QUIT.
                    return not reply.positive or not self._framing.empty

    def _step(self) -> Reply | None:
        """Reads what the session expects, and has it answered."""
        session = self._session
        expects = session.expects
        self._deadline = None
        self._in_data = in_data = expects is DATA or expects is CHUNK
        read = self._read_data() if in_data else self._framing.line(LINE_LIMIT)
        try:
            if isinstance(read, bytes):
                reply = session.line(read)
            elif read is None:
                reply = session.end_of_chunk()
            elif isinstance(read, DataEnd):
                reply = session.end_of_data(read)
            elif isinstance(read, Flaw):
                reply = session.flawed_line(read)
            else:
                reply = session.no_room()
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets 451 and the connection goes on
            self._connection_log.failed(error)
            reply = session.fail(replies.TRY_LATER)
        if session.verdict is not None or session.auth_reply is not None:
            self._report()
        return reply

    def _read_data(self) -> DataEnd | NoRoom | None:
        """The end of message data, or (None) of a chunk. NoRoom: those can't be kept."""
        session = self._session
        try:
            if session.expects is DATA:
                return self._framing.data(session.sink, session.max_message_size)
            self._framing.chunk(session.chunk_size, session.sink)
        except NoRoom as error:
            return error
        return None

    # Reading, and by when

    def _receive(self) -> bytes:
        if self._unsent:
            self._flush(self._reply_seconds)
        wire, in_data = self._wire, self._in_data
        now = time.monotonic()
        deadline = self._deadline
        first = deadline is None
        # perf: four times a mail; a comparison takes 0.02 µs, a call of min 0.1 µs: python -m timeit "min(1.5, 2.5)"
        if deadline is None:
            deadline = now + (self._pace.data_pause if in_data else self._command_seconds)
        elif in_data and deadline > now + self._pace.data_pause:
            deadline = now + self._pace.data_pause
        if deadline > self._end_by:  # noqa: PLR1730 - see above
            deadline = self._end_by
        self._deadline = deadline
        if wire is None or deadline <= now:
            raise _Ended(replies.TIMED_OUT)
        try:
            octets = wire.receive(RECEIVE_SIZE if in_data else COMMAND_SIZE, deadline)
        except Overdue as error:
            raise _Ended(replies.TIMED_OUT) from error
        except OSError as error:
            raise _Ended from error
        if not octets:
            raise _Ended
        if in_data:
            # What arrived buys time for the rest.
            begins = time.monotonic() + self._pace.data_grace if first else deadline
            self._deadline = begins + len(octets) / self._pace.data_rate
        return octets

    # Writing

    def _say(self, reply: Reply) -> None:
        unsent = self._unsent
        unsent.append(reply.encode())
        if reply.code >= 400:
            self._connection_log.error_reply(reply)
        if len(unsent) >= self.most_unsent:
            self._flush(self._reply_seconds)

    def _flush(self, seconds: float) -> None:
        """Sends the replies that wait for it, within so many seconds."""
        octets = b"".join(self._unsent)
        self._unsent.clear()
        wire = self._wire
        if wire is None:
            raise _Ended
        try:
            wire.send(octets, seconds)
        except (Overdue, OSError) as error:
            # Whatever the reply was to be: a row that is committed is delivered.
            raise _Ended from error

    def _report(self) -> None:
        session = self._session
        if session.auth_reply is not None:
            self._connection_log.authenticated(session.auth_reply)
            session.auth_reply = None
            if session.authenticated:
                self._command_seconds = self._pace.command
        if session.verdict is not None:
            self._connection_log.message(session.verdict)
            session.verdict = None

    def _close_wire(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    # TLS

    def _start_tls(self) -> None:
        """Exchanges the socket for one under TLS. Raises _Ended when no handshake came about in time."""
        if self._unsent:
            self._flush(self._reply_seconds)
        # Whatever a third party wrote behind STARTTLS in the clear must not be taken for the client's (RFC 3207).
        self._framing.discard()
        self._close_wire()
        try:
            with Timeout(self._pace.handshake, TimeoutError):
                # The client begins a handshake, and nothing is computed or held for a client that doesn't.
                gevent.socket.wait_read(self._socket.fileno())
                self._socket = self._tls_context().wrap_socket(
                    self._socket, server_side=True, do_handshake_on_connect=False
                )
                self._shake_hands()
        except OSError as error:
            self._connection_log.tls_failed(error)
            raise _Ended from error
        self._secure = True
        self._wire = TlsWire(self._socket)
        self._session.tls_started()
        self._command_seconds = self._reply_seconds

    def _shake_hands(self) -> None:
        """The handshake, with what arrives acknowledged at once: GnuTLS sends its last two messages one by one."""
        self._socket.settimeout(0.0)
        while True:
            try:
                with self._handshake_turn():
                    self._socket.do_handshake()
            except ssl.SSLWantReadError:
                acknowledge(self._socket)
                gevent.socket.wait_read(self._socket.fileno())
            except ssl.SSLWantWriteError:
                gevent.socket.wait_write(self._socket.fileno())
            else:
                break
        self._socket.settimeout(None)

    # The end

    def _farewell(self, reply: Reply) -> None:
        """A last line to a client that did not ask for one, and with it whatever it is still due, if it listens."""
        self._unsent.append(reply.encode())
        with contextlib.suppress(_Ended):
            self._flush(self.linger_seconds)

    def _hang_up(self, *, linger: bool) -> None:
        """Closes the connection. `linger`: the client may be sending, and a close over unread octets destroys replies
        that are on their way; so what it sends is read for a while, and thrown away.
        """
        try:
            if self._secure:
                self._end_tls()
            if linger:
                self._socket.shutdown(SHUT_WR)
                with Timeout(self.linger_seconds, False):  # type: ignore[arg-type]  # gevent: no exception
                    while self._socket.recv(RECEIVE_SIZE):
                        gevent.sleep(1e-6)  # the others' turn
        except OSError:
            # Gone already, which is what we are waiting for.
            pass
        finally:
            self._socket.close()

    def _end_tls(self) -> None:
        """Our close_notify, without waiting for the client's, which some never send. The socket is a plain one then."""
        self._socket.settimeout(0.0)
        with contextlib.suppress(OSError, ValueError):
            self._socket.unwrap()
        self._socket = gevent.socket.socket(fileno=self._socket.detach())
