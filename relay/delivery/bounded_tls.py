"""TLS of a client through memory, so that a server decides neither how long a read lasts nor how much it takes.

On a socket OpenSSL reads on by itself as long as what comes is no content (SSL_MODE_AUTO_RETRY, which `ssl` sets). A
server that sends KeyUpdate messages (RFC 8446 section 4.6.3) faster than they are read keeps the thread, and with it
all greenlets, for as long as it sends: no time limit of this process would come. Here OpenSSL gets a piece at a time.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Final

#: Octets that are read from the socket at a time.
_READ: Final = 16_384
#: Octets that may come before there is content: the handshake, whose chain of certificates has 100 KB at most, and
#: messages after it. Content makes up for twice as many octets before it.
_MOST_BESIDE: Final = 131_072


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

    def sendall(self, octets: bytes) -> None:
        """Sends all of it."""
        rest = memoryview(octets)
        while rest:
            try:
                rest = rest[self._tls.write(rest) :]
            except ssl.SSLWantReadError:
                self._exchange()
        self._flush()

    def recv(self, most: int) -> bytes:
        """The next octets; none at the end, whether it was announced or not."""
        while True:
            try:
                octets = self._tls.read(most)
            except ssl.SSLWantReadError:
                self._exchange()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            else:
                self._beside = max(0, self._beside - 2 * len(octets))
                return octets

    def settimeout(self, seconds: float) -> None:
        """So many seconds from now is the deadline."""
        self._deadline = time.monotonic() + seconds

    def close(self) -> None:
        """Closes the socket. What is under way is cut off."""
        self._sock.close()

    def _exchange(self) -> None:
        """Sends what OpenSSL has to say, and gives it one piece of what comes."""
        self._flush()
        self._sock.settimeout(self._seconds_left())
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
            self._sock.settimeout(self._seconds_left())
            self._sock.sendall(octets)

    def _send_alert(self) -> None:
        """Sends the alert about a wrong handshake, as long as the server reads."""
        try:
            self._flush()
        except OSError:
            return

    def _seconds_left(self) -> float:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("no whole answer in time")
        return seconds
