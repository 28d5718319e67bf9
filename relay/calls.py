"""HTTPS calls to one endpoint, one after another on connections that stay open.

The standard library's http.client, without a pool of urllib3's around it: that takes three times the CPU of what it
calls, and it is paid for every ten messages that the relay accepts.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

#: A connection that was idle for longer (seconds) may be one that the other side is just about to close.
_IDLE_SECONDS: Final = 4.0
_PORTS: Final = {"http": 80, "https": 443}


class Calls:
    """POSTs to `endpoint`. `cafile`: whom to trust, PEM."""

    def __init__(self, endpoint: str, *, cafile: str | None, connect_seconds: float, read_seconds: float) -> None:
        """Raises ValueError for an endpoint that is no URL, OSError for a `cafile` that can't be read."""
        parts = urlsplit(endpoint)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("not the URL of an HTTP server")
        self._host, self._port, self._path = parts.hostname, parts.port or _PORTS[parts.scheme], parts.path or "/"
        self._context = _context(cafile) if parts.scheme == "https" else None
        self._seconds = connect_seconds, read_seconds
        #: With the moment (time.monotonic()) when each was last used, the latest at the end.
        self._idle: deque[tuple[float, HTTPConnection]] = deque()

    def post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and content of the response. Raises OSError and http.client.HTTPException."""
        connection = self._take()
        try:
            connection.request("POST", self._path, body, dict(headers))
            with connection.getresponse() as response:
                content = response.read()
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            self._idle.append((time.monotonic(), connection))
        return response.status, content

    def close(self) -> None:
        """Closes the connections that are idle."""
        while self._idle:
            self._idle.pop()[1].close()

    def _take(self) -> HTTPConnection:
        while self._idle and self._idle[0][0] < time.monotonic() - _IDLE_SECONDS:
            self._idle.popleft()[1].close()
        while self._idle:
            connection = self._idle.pop()[1]
            if self._silent(connection):
                return connection
            connection.close()
        return self._connect()

    def _silent(self, connection: HTTPConnection) -> bool:
        """Whether the other side has neither closed nor said anything since its answer.

        What it says unasked would be taken for the answer to the next call, and the next answer for that to the one
        after: jobs would count as taken that nobody has.
        """
        connection.sock.settimeout(0.0)
        try:
            connection.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        finally:
            connection.sock.settimeout(self._seconds[1])
        return False

    def _connect(self) -> HTTPConnection:
        connect_seconds, read_seconds = self._seconds
        if self._context is None:
            connection = HTTPConnection(self._host, self._port, timeout=connect_seconds)
        else:
            connection = HTTPSConnection(self._host, self._port, timeout=connect_seconds, context=self._context)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(read_seconds)
        return connection


#: What `Calls.post` may raise.
CALL_ERRORS: Final = (OSError, HTTPException)


def _context(cafile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cafile)
    # From Python 3.13 on certificates have to be without the small faults that private authorities make.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
