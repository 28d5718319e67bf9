"""TLS through memory: OpenSSL has no socket, so that no client decides how long it works or what it leaves behind.

With a socket OpenSSL reads on by itself as long as what comes is no content (SSL_MODE_AUTO_RETRY, which `ssl` sets).
A client that sends KeyUpdate messages (RFC 8446 section 4.6.3) without a pause keeps the thread, and with it all
greenlets, for as long as it sends. Measured with 8 MB of them, before a login: 9 s. Here OpenSSL gets a piece at a
time, and after two of them without content the others have their turn.

And with a socket OpenSSL leaves an error behind when the connection is reset. Errors are in one queue for each thread,
and `ssl` asks the queue how an operation ended (SSL_get_error(3)). It empties the queue with each SSLError, but, in
releases since 2025 (python/cpython#127361), not where it raises another OSError: then one connection that breaks breaks
others of the thread (python/cpython#148594). In memory there is no such error.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Final, Protocol

from gevent.ssl import SSLContext

#: Octets that OpenSSL gets at a time: a record of the largest size, nearly always.
PIECE: Final = 16_896
#: Octets that it may get before the others have their turn.
_MOST: Final = 2 * PIECE
#: Octets that it encrypts at a time: what is due to a client that does not read is held in memory.
_WRITTEN: Final = 65_536


class _State(Protocol):
    """What is used of `_ssl._SSLSocket`."""

    def do_handshake(self) -> None: ...
    def read(self, size: int, /, *buffer: memoryview) -> bytes | int: ...
    def write(self, octets: bytes | memoryview, /) -> int: ...
    def pending(self) -> int: ...
    def shutdown(self) -> object: ...


def put_tls_into_memory() -> None:
    """From now on all sockets under TLS of this process work so. For a process that gevent has patched."""
    SSLContext._wrap_socket = _wrap_socket  # type: ignore[attr-defined]


def tls_of(sock: socket.socket) -> TlsInMemory:
    """The state of a socket under TLS, for code that sends and receives what is encrypted by itself."""
    tls: object = getattr(sock, "_sslobj", None)
    if not isinstance(tls, TlsInMemory):
        raise TypeError("this process has not put TLS into memory")
    return tls


def _wrap_socket(
    context: ssl.SSLContext,
    sock: socket.socket,
    server_side: bool,
    server_hostname: str | None = None,
    *,
    owner: object = None,
    session: ssl.SSLSession | None = None,
) -> TlsInMemory:
    """What takes the place of `ssl`'s own object for a connection, under its own methods' names."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context._wrap_bio(  # type: ignore[attr-defined] # as ssl.SSLObject calls it
        incoming, outgoing, server_side, server_hostname, owner=owner, session=session
    )
    return TlsInMemory(sock, tls, incoming, outgoing)


class TlsInMemory:
    """The state of a connection under TLS, as `_ssl._SSLSocket` is one, for a socket that doesn't block.

    Methods raise SSLWantReadError or SSLWantWriteError when the socket has to be waited for, SSLError, and OSError.
    """

    __slots__ = ("_ended", "_incoming", "_outgoing", "_since_pause", "_sock", "_tls", "_written", "unsent")

    def __init__(self, sock: socket.socket, tls: _State, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._sock = sock
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        #: What is encrypted and not sent. And what of the caller's is in it, with its length.
        self.unsent = b""
        self._written: tuple[object, int] | None = None
        self._since_pause = 0
        self._ended = False

    def __getattr__(self, name: str) -> object:
        """Everything that sends and receives nothing: version, cipher, certificates."""
        return getattr(self._tls, name)

    def read(self, size: int, *buffer: memoryview) -> bytes | int:
        """As `_ssl._SSLSocket.read`."""
        while True:
            if self.holds_more() or self._ended:
                read = self.decrypt(size, *buffer)
                if read is not None:
                    return read
            self._receive()

    def write(self, octets: bytes | memoryview) -> int:
        """As `_ssl._SSLSocket.write`. After SSLWantWriteError it is called again with the same object."""
        if self.unsent:
            self._flush()
        if self._written is not None:
            (earlier, written), self._written = self._written, None
            if earlier is octets:
                return written
        written = int(self._tls.write(octets if len(octets) <= _WRITTEN else memoryview(octets)[:_WRITTEN]))
        self._written = octets, written
        self._flush()
        self._written = None
        return written

    def do_handshake(self) -> None:
        """As `_ssl._SSLSocket.do_handshake`."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                self._send_alert()
                raise
            else:
                self._flush()
                return

    def shutdown(self) -> socket.socket:
        """As `_ssl._SSLSocket.shutdown`."""
        while True:
            try:
                self._tls.shutdown()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            else:
                self._flush()
                return self._sock

    # For code that sends and receives by itself

    def holds_more(self) -> bool:
        """Whether something has come that is not decrypted, or not taken."""
        return bool(self._incoming.pending or self._tls.pending())

    def give(self, octets: bytes) -> None:
        """Takes in what has come, not the end of it."""
        self._incoming.write(octets)

    def decrypt(self, size: int, *buffer: memoryview) -> bytes | int | None:
        """As `read`, of what has come; None: more must come.

        Raises SSLWantWriteError where the other side does not read what OpenSSL answers.
        """
        try:
            return self._tls.read(size, *buffer)
        except ssl.SSLWantReadError:
            self._answer()
            return None
        except ssl.SSLError:
            self._send_alert()
            raise

    def encrypt(self, octets: bytes) -> bytes:
        """What is to be sent now. What of it can't be sent becomes `unsent`."""
        self._tls.write(octets)
        due, self.unsent = self._due(), b""
        return due

    def flushed(self) -> bool:
        """Sends what is unsent, as far as it is taken, and says whether that was all."""
        try:
            self._flush()
        except ssl.SSLWantWriteError:
            return False
        return True

    # What is sent and received

    def _answer(self) -> None:
        """Sends what OpenSSL replies by itself, such as a refusal to renegotiate, to a client that may not read it."""
        if self._outgoing.pending and not self.flushed() and len(self.unsent) > _WRITTEN:
            raise ssl.SSLWantWriteError

    def _receive(self) -> None:
        """Gives OpenSSL a piece of what has come."""
        if self._since_pause >= _MOST:
            # The caller waits for the socket, which is ready if more has come: the others have their turn before.
            self._since_pause = 0
            raise ssl.SSLWantReadError
        try:
            octets = self._sock.recv(PIECE)
        except BlockingIOError:
            self._since_pause = 0
            raise ssl.SSLWantReadError from None
        self._since_pause += len(octets)
        if octets:
            self._incoming.write(octets)
        else:
            self._incoming.write_eof()
            self._ended = True

    def _due(self) -> bytes:
        """What is encrypted, and not sent."""
        encrypted = self._outgoing.read()
        return self.unsent + encrypted if self.unsent else encrypted

    def _flush(self) -> None:
        """Sends what is encrypted."""
        octets = self._due()
        while octets:
            self.unsent = octets
            try:
                sent = self._sock.send(octets)
            except BlockingIOError:
                raise ssl.SSLWantWriteError from None
            octets = octets[sent:]
        self.unsent = b""

    def _send_alert(self) -> None:
        """Sends the alert about what was wrong, if the other side still reads."""
        with contextlib.suppress(OSError):
            self._flush()
