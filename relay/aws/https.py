"""HTTPS calls to one endpoint, one after another on connections that stay open.

Of HTTP/1.1 (RFC 9112) this writes what a POST needs, and leaves the reading to llhttp, the parser of Node (httptools).
The standard library's http.client takes more than twice the CPU for it, a pool of urllib3's more than that, and it is
paid for every ten messages that the relay accepts.
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

import gevent
from gevent import monkey
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from relay.core.deadlines import with_what_is_at_hand
from relay.core.errors import TooLate
from relay.core.tls_client import client_context

#: A connection that was idle for longer (seconds) may be one that the other side is just about to close.
_IDLE_SECONDS: Final = 4.0
_PORTS: Final = {"http": 80, "https": 443}
#: Octets read at a time, the most that the content of a response may have, and the most that all of it may have.
_READ: Final = 65_536
_MAX_CONTENT: Final = 4 * 1024 * 1024
_MAX_RESPONSE: Final = 2 * _MAX_CONTENT
#: Interim responses (RFC 9110 section 15.2) to one request. A server has a reason to send one or two.
_MAX_INTERIM: Final = 8


class NotSentError(OSError):
    """No connection came about: the other side has nothing of the request. `code`: the name of what went wrong."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class RequestBody(Protocol):
    """A body that is too large to be held: it comes in pieces, which can be gone through more than once."""

    @property
    def size(self) -> int:
        """Octets."""

    def pieces(self) -> Iterator[bytes]:
        """All octets in order. What it raises ends the call, and goes through to the caller."""


class Answer(NamedTuple):
    """A response. `error_type`: the field X-Amzn-Errortype, in which AWS's REST services name an error."""

    status: int
    content: bytes
    error_type: str


class HttpsClient:
    """POSTs to `endpoint`. `cafile`: the trusted authorities, PEM.

    `connect_seconds` bounds the time for a connection to one address of the endpoint, `call_seconds` the whole call:
    name, connection, handshake, request and response, however slowly they come. In a process that gevent has not
    patched, what the resolver takes is not counted.
    """

    def __init__(self, endpoint: str, *, cafile: str | None, connect_seconds: float, call_seconds: float) -> None:
        """Raises ValueError for an endpoint that is no URL, OSError for a `cafile` that can't be read."""
        parts = _split(endpoint)
        self._host, self._port, self._path = parts.hostname, parts.port or _PORTS[parts.scheme], parts.path or "/"
        self._context = client_context(cafile) if parts.scheme == "https" else None
        self._connect_seconds, self._call_seconds = connect_seconds, call_seconds
        #: With the moment (time.monotonic()) when each was last used, the latest at the end.
        self._idle: deque[tuple[float, _HttpsConnection]] = deque()

    def post(
        self,
        body: bytes | RequestBody,
        headers: Mapping[str, str],
        *,
        more_seconds: float = 0.0,
        ready: Callable[[], None] | None = None,
    ) -> Answer:
        """The response. `headers` are all but Content-Length; `more_seconds` are added to those of a call.

        `ready` is called when there is a connection, right before the first octet, and may wait. Where it raises
        TooLate nothing is sent, and the error goes through. Raises any of CALL_ERRORS besides: NotSentError where the
        other side can't have got the request.
        """
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        size = len(body) if isinstance(body, bytes) else body.size
        head = f"POST {self._path} HTTP/1.1\r\n{fields}Content-Length: {size}\r\n\r\n".encode("latin-1")
        seconds = self._call_seconds + more_seconds
        deadline = time.monotonic() + seconds
        connection: _HttpsConnection | None = None
        taken = math.inf
        begun = False
        # A BaseException, so that nothing on the way takes it for an error that it knows.
        with gevent.Timeout(seconds) as limit:
            try:
                # What `ready` is called for is looked at after that.
                connection = self._take(look=ready is None)
                taken = time.monotonic()
                if ready is not None:
                    ready()
                    if not _silent(connection.sock):  # closed meanwhile
                        connection.sock.close()
                        connection = self._connect()
                begun = True
                answer = connection.exchange(head, body, deadline, limit)
            except TooLate:
                if connection is not None and time.monotonic() - taken < _IDLE_SECONDS:
                    self._idle.append((time.monotonic(), connection))
                elif connection is not None:
                    connection.sock.close()
                raise
            except BaseException as error:
                late = error is limit
                if connection is not None:
                    connection.sock.close()
                if not begun:
                    if late or isinstance(error, OSError):
                        raise NotSentError("TimeoutError" if late else type(error).__name__) from error
                    raise
                if late:
                    raise TimeoutError("no whole answer in time") from None
                raise
        if connection.last:
            connection.sock.close()
        else:
            self._idle.append((time.monotonic(), connection))
        return Answer(*answer, connection.error_type)

    def close(self) -> None:
        """Closes the connections that are idle."""
        while self._idle:
            self._idle.pop()[1].sock.close()

    def _take(self, *, look: bool) -> _HttpsConnection:
        """A connection: of those that are kept the one that was used last; `look`: which is still open."""
        while self._idle and self._idle[0][0] < time.monotonic() - _IDLE_SECONDS:
            self._idle.popleft()[1].sock.close()
        while self._idle:
            connection = self._idle.pop()[1]
            if not look or _silent(connection.sock):
                return connection
            connection.sock.close()
        return self._connect()

    def _connect(self) -> _HttpsConnection:
        sock = socket.create_connection((self._host, self._port), timeout=self._connect_seconds)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise
        return _HttpsConnection(sock)


class _HttpsConnection:
    """A connection with its parser, which calls it for each part of the answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._parser = HttpResponseParser(self)
        #: Whether `gevent.Timeout` ends a wait for this socket, and the moment at which one does.
        self._interrupts = monkey.is_module_patched("socket")
        self._covered = -math.inf
        #: Whether it can't be used any more.
        self.last = False
        #: The last response: status, content, and the server's name of the request (X-Amzn-RequestId).
        self._before: tuple[int, bytes, bytes] | None = None
        self._begin()

    def _begin(self) -> None:
        """Nothing of the next response is there yet."""
        self._content: list[bytes] = []
        self._length = self._interim = self._received = 0
        self._answered = self._headers_complete = self._measured = False
        self.error_type = ""
        self._request_id = b""

    def exchange(
        self, head: bytes, body: bytes | RequestBody, deadline: float, limit: gevent.Timeout
    ) -> tuple[int, bytes]:
        """Status and content of the response to a request, by a moment of time.monotonic(), and as `limit` lets it.

        Raises any of CALL_ERRORS, and is of no more use then.
        """
        self._begin()
        self._covered = deadline if self._interrupts else -math.inf
        self._limit(deadline)
        if isinstance(body, bytes):
            octets = head + body
            # perf: 2 µs less: gevent's sendall asks for the size of the socket's buffer first.
            sent = self.sock.send(octets)
            if sent < len(octets):
                self.sock.sendall(memoryview(octets)[sent:])
        else:
            self.sock.sendall(head)
            for piece in body.pieces():
                self._limit(deadline)
                self.sock.sendall(piece)
        return with_what_is_at_hand(self._answer, deadline, limit)

    def _answer(self, deadline: float) -> tuple[int, bytes]:
        while not self._answered:
            # Anew for each piece: a server that sends an octet now and then is not in time for that.
            self._limit(deadline)
            octets = self.sock.recv(_READ)
            self._received += len(octets)
            if self._received > _MAX_RESPONSE:
                raise ConnectionAbortedError("a response without end")
            if octets:
                self._parser.feed_data(octets)
            elif self._headers_complete and not self._measured:  # it goes on until the end (RFC 9112 section 6.3)
                self._answered = self.last = True
            else:
                raise ConnectionResetError("closed before its answer was complete")
        status, content = self._parser.get_status_code(), b"".join(self._content)
        response = status, content, self._request_id
        if self._request_id and response == self._before:
            # Said twice, too late to be seen ahead of this request (`_silent`), whose answer would go to the next one.
            raise ConnectionAbortedError("the response to an earlier request")
        self._before = response
        return status, content

    def _limit(self, deadline: float) -> None:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no whole answer in time")
        # perf: 3 µs a call: gevent makes a timer for each wait with a separate limit.
        self.sock.settimeout(None if deadline == self._covered else seconds)

    def on_message_begin(self) -> None:
        """Called by the parser: a response, or an interim one, begins."""
        if self._answered:
            raise ValueError("a second response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        key = name.lower()
        if key == b"x-amzn-errortype":
            self.error_type = value.decode("latin-1")[:200]
        elif key == b"x-amzn-requestid":
            self._request_id = value
        self._measured = self._measured or key in {b"content-length", b"transfer-encoding"}

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._headers_complete = True

    def on_body(self, octets: bytes) -> None:
        """Called by the parser."""
        self._length += len(octets)
        if self._length > _MAX_CONTENT:
            raise ValueError("a response without end")
        self._content.append(octets)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._parser.get_status_code() < 200:  # an interim response (RFC 9110 section 15.2)
            self._headers_complete = self._measured = False
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise ValueError("interim responses without end")
        else:
            self._answered = True
            self.last = not self._parser.should_keep_alive()


#: What `HttpsClient.post` may raise.
CALL_ERRORS: Final = (OSError, HttpParserError, HttpParserUpgrade)


def _silent(sock: socket.socket) -> bool:
    """Whether the other side has neither closed nor said anything since its answer.

    What it says unasked would be taken for the answer to the next call, and the next answer for that to the one after:
    jobs would count as taken that are in no queue.
    """
    sock.settimeout(0.0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False


def host_field(endpoint: str) -> str:
    """The Host field of a request to `endpoint` (RFC 9110 section 7.2). Raises ValueError for what is no URL."""
    parts = _split(endpoint)
    return parts.netloc.rpartition("@")[2].removesuffix(f":{_PORTS[parts.scheme]}")


def _split(endpoint: str) -> SplitResult:
    parts = urlsplit(endpoint)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("not the URL of an HTTP server")
    return parts
