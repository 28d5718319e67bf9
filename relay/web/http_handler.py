"""One HTTP connection: gevent's WSGI handler with bounds on time and octets, and without its ways to standard error.

What a client sends is bounded at each step: the line, the header, the body; and so is the time for each. A request
whose body was not read, or whose length could be understood in two ways (RFC 9112 section 6.3), is the last on its
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BufferedReader
from typing import Final, Literal

import gevent
import gevent.socket
import structlog
from gevent.pywsgi import WSGIHandler, WSGIServer

from relay.core.tracking_token import LONGEST_TOKEN
from relay.web.responses import Environ

log = structlog.get_logger(__name__)

#: Octets of a request line, and of a header with it. The line of a tracked link holds a token.
MAX_LINE_OCTETS: Final = LONGEST_TOKEN + 1_000
MAX_HEAD_OCTETS: Final = MAX_LINE_OCTETS + 32_768
#: Octets of a body, with what its transfer coding adds. `relay.web.application` refuses a content that is longer.
_MAX_BODY_OCTETS: Final = 400_000
#: Until a request line is complete, on a new connection or on one that is kept; and then until the response has ended.
LINE_SECONDS: Final = 15.0
REQUEST_SECONDS: Final = 20.0

_BAD_REQUEST: Final = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_LONG: Final = b"HTTP/1.1 414 URI Too Long\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _TooMuch(ValueError):
    """The client has sent more than may be."""


class BoundedReader:
    """Reads from a file until so many octets have been read; then raises ValueError."""

    __slots__ = ("_file", "left")

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        #: Octets that may be read yet.
        self.left = 0

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    def readline(self, most: int = -1) -> bytes:
        """As files have it."""
        return self._counted(self._file.readline(min(most, self.left + 1) if most >= 0 else self.left + 1))

    def read(self, most: int = -1) -> bytes:
        """As files have it."""
        return self._counted(self._file.read(min(most, self.left + 1) if most >= 0 else self.left + 1))

    def _counted(self, octets: bytes) -> bytes:
        self.left -= len(octets)
        if self.left < 0:
            raise _TooMuch
        return octets


class HttpHandler(WSGIHandler):
    """One connection."""

    line_seconds = LINE_SECONDS
    request_seconds = REQUEST_SECONDS

    def __init__(
        self, sock: gevent.socket.socket, client: str, server: WSGIServer, draining: Callable[[], bool]
    ) -> None:
        """`client`: its address. `draining`: whether no further request is to be read."""
        # The stubs know an address as text alone, and a reader as one class.
        super().__init__(sock, (client, 0), server)  # type: ignore[arg-type]
        self._reader = BoundedReader(self.rfile)
        self.rfile = self._reader  # type: ignore[assignment]
        self._draining = draining
        #: Whether it waits for a request: then it may be closed without loss.
        self.idle = True

    def handle_one_request(self) -> tuple[str, bytes] | Literal[True] | None:
        """See WSGIHandler: None, True, or a status with octets, after which the connection is closed."""
        line = self._line()
        if not isinstance(line, bytes):
            return line
        with gevent.Timeout(self.request_seconds, False):  # type: ignore[arg-type]  # gevent: no exception
            return self._serve(line.decode("latin-1"))
        return None

    def _line(self) -> bytes | tuple[str, bytes] | None:
        """The request line; what is answered in its place, where it is too long; None where there is none."""
        if self._draining():
            return None
        self.idle = True
        self._reader.left = MAX_LINE_OCTETS
        line = b""
        with gevent.Timeout(self.line_seconds, False):  # type: ignore[arg-type]  # gevent: no exception
            try:
                line = self._reader.readline()
            except _TooMuch:
                return "414", _TOO_LONG
            except (OSError, ValueError):  # gone, or closed by a drain
                return None
            self.idle = False
        return line if line.strip() else None

    def _serve(self, line: str) -> tuple[str, bytes] | Literal[True] | None:
        self._reader.left = MAX_HEAD_OCTETS - len(line)
        self.response_length = 0
        try:
            self.read_request(line)
            # Behind a line that is no field, fields may stand that are not read here.
            if self.request_version not in ("HTTP/1.0", "HTTP/1.1") or self.headers.defects:
                return "400", _BAD_REQUEST
            environ = self.environ = self.get_environ()
        except _TooMuch:
            return "431", _TOO_LARGE
        except OSError:
            return None
        except Exception:  # noqa: BLE001 - gevent's parser raises whatever a header makes it stumble over
            return "400", _BAD_REQUEST
        self.close_connection |= not self._has_plain_length(environ) or self._draining()
        self._reader.left = _MAX_BODY_OCTETS
        self.application = self.server.application
        self.handle_one_response()
        return None if self.close_connection or self._draining() else True

    def _has_plain_length(self, environ: Environ) -> bool:
        """Whether no other server can read another length into the request than is read here."""
        if environ.get("HTTP_TRANSFER_ENCODING") is not None:
            return False
        length = environ.get("CONTENT_LENGTH")
        lengths = self.headers.get_all("content-length") or ()
        return len(lengths) <= 1 and (length is None or (length.isascii() and length.isdecimal()))

    def run_application(self) -> None:
        """See WSGIHandler."""
        try:
            super().run_application()
        finally:
            source = self.wsgi_input
            if source is not None and (source.chunked_input or source.position < (source.content_length or 0)):
                self.close_connection = True
                # Or the rest of the body would be read first, however long it is, and without a time limit.
                source._chunked_input_error = True  # type: ignore[attr-defined]  # a slot in the stubs alone

    def handle_error(self, t: object, v: object, tb: object) -> None:
        """See WSGIHandler: an error beyond the application's own. The connection has had its time, or is gone."""
        self.close_connection = True
        if isinstance(v, gevent.Timeout | gevent.GreenletExit):
            raise v
        if not isinstance(v, OSError | _TooMuch):
            log.error("http_failed", exc_info=v)
            self._send_error_response_if_possible(500)  # type: ignore[attr-defined]

    def _handle_client_error(self, ex: BaseException) -> tuple[str, bytes]:
        """See WSGIHandler, which would write to standard error."""
        self.close_connection = True
        return "400", _BAD_REQUEST

    def log_request(self) -> None:
        """See WSGIHandler: requests are counted, not logged."""
