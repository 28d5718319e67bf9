"""TLS of a client through memory, so that a server decides neither how long a read lasts nor how much it takes.

On a socket OpenSSL reads on by itself as long as what comes is no content (SSL_MODE_AUTO_RETRY, which `ssl` sets). A
server that sends KeyUpdate messages (RFC 8446 section 4.6.3) faster than they are read keeps the thread, and with it
all greenlets, for as long as it sends: no time limit of this process would come. Here OpenSSL gets a piece at a time.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

#: Octets that are read from the socket at a time, and that are encrypted at a time.
_READ: Final = 16_384
_WRITE: Final = 65_536
#: Octets that may come before there is content: the handshake, whose chain of certificates has 100 KB at most, and
#: messages after it. Content makes up for twice as many octets before it.
_MOST_BESIDE: Final = 131_072


def send_whole(sock: socket.socket, octets: bytes | memoryview, deadline: float) -> None:
    """Sends all of it. `deadline`: by time.monotonic(). Raises OSError, and with the deadline TimeoutError.

    `sendall` of gevent begins its time limit anew with each wait: a server that reads a little now and then, and then
    nothing, would keep it for twice as long.
    """
    rest = memoryview(octets)
    while rest:
        sock.settimeout(_seconds_to(deadline))
        rest = rest[sock.send(rest) :]


class BoundedTls:
    """A connection of a client under TLS; closes `sock` when it is closed itself. Every method raises OSError, and with
    the deadline TimeoutError.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str, deadline: float) -> None:
        """Makes the handshake. `host` is named in it and verified. `deadline`: by time.monotonic(), for all of it."""
        self._sock = sock
        self._deadline = deadline
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._beside = 0
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._exchange()
            except ssl.SSLError:
                self._send_alert()
                raise
        self._flush()

    @property
    def version(self) -> str:
        """Such as `TLSv1.3`."""
        return self._tls.version() or ""

    def renew(self) -> None:
        """From now on what comes beside content is counted anew."""
        self._beside = 0

    def sendall(self, octets: bytes) -> None:
        """Sends all of it."""
        rest = memoryview(octets)
        while rest:
            try:
                rest = rest[self._tls.write(rest[:_WRITE]) :]
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                self._flush()

    def recv(self, most: int) -> bytes:
        """The next octets; none at the end, whether it was announced or not."""
        return self._read(most, self._exchange)

    def recv_now(self, most: int) -> bytes:
        """As `recv`, without waiting: raises BlockingIOError where there is nothing."""
        return self._read(most, lambda: self._take(0.0))

    def settimeout(self, seconds: float) -> None:
        """So many seconds from now is the deadline."""
        self._deadline = time.monotonic() + seconds

    def close(self) -> None:
        """Closes the socket. What is under way is cut off."""
        self._sock.close()

    def _read(self, most: int, more: Callable[[], None]) -> bytes:
        while True:
            try:
                octets = self._tls.read(most)
            except ssl.SSLWantReadError:
                more()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            else:
                self._beside = max(0, self._beside - 2 * len(octets))
                return octets

    def _exchange(self) -> None:
        """Sends what OpenSSL has to say, and gives it one piece of what comes."""
        self._flush()
        self._take(_seconds_to(self._deadline))

    def _take(self, seconds: float) -> None:
        self._sock.settimeout(seconds)
        octets = self._sock.recv(_READ)
        self._beside += len(octets)
        if self._beside > _MOST_BESIDE:
            raise ConnectionAbortedError("TLS messages without end")
        if octets:
            self._incoming.write(octets)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        octets = self._outgoing.read()
        if octets:
            send_whole(self._sock, octets, self._deadline)

    def _send_alert(self) -> None:
        """Sends the alert about a wrong handshake, as long as the server reads."""
        try:
            self._flush()
        except OSError:
            return


def _seconds_to(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no whole answer in time")
    return seconds
