"""The client's side of an SMTP connection (RFC 5321): commands, replies within bounds, TLS. It knows nothing of mails.

The standard library's smtplib sends one command at a time, and sets no limit to the length of a reply or to the time
that all of it takes; so what is needed of the protocol is written out. The text of a reply is never part of an
exception: it may name addresses, or repeat what was sent.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from relay.core.deadlines import AT_HAND_SECONDS
from relay.delivery.bounded_tls import BoundedTls, send_whole

#: Octets that are asked for at a time.
_READ: Final = 16_384
#: Bounds of one reply: octets of a line, lines, and octets of all. RFC 5321 section 4.5.3.1.5 allows 512 to a line.
_MAX_LINE: Final = 4096
_MAX_LINES: Final = 256
_MAX_REPLY: Final = 65_536
#: A server says this where it closes the connection (RFC 5321 section 3.8).
CLOSING: Final = 421

_LINE: Final = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\n]*))?\r?\Z")
_STATUS: Final = re.compile(r"([245])\.([0-9]{1,3})\.([0-9]{1,3})(?= |\Z)")
#: RFC 1870 section 3 allows 20 digits. Of thousands Python makes no number.
_SIZE: Final = re.compile(r"[0-9]{1,20}\Z")
#: What a reply's text shows a question mark for, each run of it.
NOT_PRINTABLE: Final = re.compile(r"[^ -~]+")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")


class Reply(NamedTuple):
    """What the server answered to a command. `lines`: printable ASCII, without the code."""

    code: int
    lines: tuple[str, ...]

    @property
    def kind(self) -> int:
        """The first digit: 2 done, 3 go on, 4 not now, 5 no."""
        return self.code // 100

    @property
    def status(self) -> str:
        """The enhanced status code (RFC 2034, RFC 3463) such as `5.1.1`; empty where there is none that fits."""
        found = _STATUS.match(self.lines[0])
        return found[0] if found and int(found[1]) == self.kind else ""

    @property
    def codes(self) -> str:
        """`550 5.1.1`, or `550`: digits and full stops alone, whatever was said."""
        return f"{self.code} {self.status}".rstrip()

    @property
    def text(self) -> str:
        """All lines, without the enhanced status codes that each may begin with."""
        status = self.status
        shown = [each.removeprefix(status).strip() for each in self.lines]
        return " ".join(filter(None, shown))


class ConnectionBroken(Exception):
    """The connection is of no more use. `code`: the name of an error, or a word of ours."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class SmtpConnection:
    """A connection to a server. Methods raise ConnectionBroken; `until` is a moment of time.monotonic().

    A server that has said more than it was asked for is not understood any more: its next reply would be taken for the
    one to a command that it has not read. So nothing is sent to it that wants a reply.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket: socket.socket | BoundedTls = sock
        self._buffer = b""
        #: Replies that are to come. The first is the greeting.
        self._awaited = 1
        #: What EHLO offered: keyword in upper case → its parameters.
        self.extensions: dict[str, str] = {}
        #: Transactions so far, and the end of the last one.
        self.mails = 0
        self.used = time.monotonic()
        #: A transaction was begun that is not over: RSET has to come before the next one.
        self.dirty = False

    @property
    def tls_version(self) -> str:
        """Such as `TLSv1.3`; empty in the clear."""
        return self._socket.version if isinstance(self._socket, BoundedTls) else ""

    @property
    def babbled(self) -> bool:
        """Whether the server is known to have said more than it was asked for, but that it closes the connection."""
        return not self._awaited and self._buffer[:3] not in (b"", b"421")

    def send(self, octets: bytes, until: float) -> None:
        """Sends all of it: what the server does not reply to."""
        try:
            if isinstance(self._socket, BoundedTls):
                self._limit(until)
                self._socket.sendall(octets)
            else:
                send_whole(self._socket, octets, until)
        except OSError as error:
            raise ConnectionBroken(word_of(error)) from None

    def demand(self, octets: bytes, replies: int, until: float) -> None:
        """Sends what the server gives so many replies to. It must not have said anything beside those before."""
        if not self._awaited and not self.silent():
            raise ConnectionBroken("SaidUnasked" if self._buffer else "ConnectionClosed")
        self.send(octets, until)
        self._awaited += replies

    def reply(self, until: float) -> Reply:
        """The next reply, whole. What is no reply, or one without end, breaks the connection."""
        if isinstance(self._socket, BoundedTls):
            self._socket.renew()
        self._awaited = max(0, self._awaited - 1)
        lines: list[str] = []
        code, size = b"", 0
        late = False
        while len(lines) < _MAX_LINES and size <= _MAX_REPLY:
            try:
                line = self._line(until)
            except TimeoutError as error:
                if late:
                    raise ConnectionBroken(word_of(error)) from None
                late, until = True, time.monotonic() + AT_HAND_SECONDS
                continue
            size += len(line)
            match = _LINE.match(line)
            if match is None or (lines and match[1] != code):
                raise ConnectionBroken("NotSmtp")
            code = match[1]
            lines.append(NOT_PRINTABLE.sub("?", (match[3] or b"").decode("latin-1").rstrip("\r")).strip())
            if match[2] != b"-":
                return Reply(int(code), tuple(lines))
        raise ConnectionBroken("EndlessReply")

    def ask(self, command: str, until: float) -> Reply:
        """Sends a command, given without its line end, and returns the reply."""
        self.put([command], until)
        return self.reply(until)

    def put(self, commands: Sequence[str], until: float) -> None:
        """Sends commands at once (RFC 2920): the server must offer PIPELINING, and answers each."""
        self.demand(b"".join(map(_octets, commands)), len(commands), until)

    @property
    def size_limit(self) -> int:
        """Octets of the largest mail, as SIZE says (RFC 1870 section 4); 0: it does not say so."""
        limit = self.extensions.get("SIZE", "")
        return int(limit) if _SIZE.match(limit) else 0

    def greet(self, hostname: str, until: float) -> Reply:
        """EHLO; what it offers is in `extensions` then."""
        reply = self.ask(f"EHLO {hostname}", until)
        self.extensions = {}
        for each in reply.lines[1:]:
            # Old servers write `AUTH=LOGIN`, some of them beside `AUTH LOGIN`.
            keyword, _, parameters = each.replace("=", " ", 1).partition(" ")
            known = self.extensions.get(keyword.upper(), "")
            self.extensions[keyword.upper()] = f"{known} {parameters}".strip()
        return reply

    def secure(self, context: ssl.SSLContext, host: str, until: float) -> None:
        """Begins TLS. What was said ahead of it is no part of what follows (RFC 3207 section 4.2)."""
        if self._buffer:
            raise ConnectionBroken("TextBeforeTls")
        if isinstance(self._socket, BoundedTls):
            raise TypeError("TLS is there")
        try:
            self._socket = BoundedTls(self._socket, context, host, until)
        except (OSError, ValueError) as error:  # ValueError: a host that no certificate can name
            raise ConnectionBroken(word_of(error)) from None

    def silent(self) -> bool:
        """Whether the server has neither closed nor said anything since its last reply: then it can be used."""
        if self._buffer:
            return False
        try:
            if isinstance(self._socket, BoundedTls):
                self._buffer = self._socket.recv_now(_READ)
            else:
                self._socket.settimeout(0.0)
                self._buffer = self._socket.recv(_READ)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def quit(self, until: float) -> None:
        """Ends the session in order, and closes."""
        with contextlib.suppress(ConnectionBroken):
            self.ask("QUIT", until)
        self.close()

    def close(self) -> None:
        """Closes at once. The server throws away what it has of a mail that is not complete."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _line(self, until: float) -> bytes:
        """The next line, without its LF. Raises TimeoutError besides; what has come of it is kept."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE:
                raise ConnectionBroken("EndlessReply")
            try:
                # Anew for each piece: a server that sends an octet now and then is not in time for that.
                self._limit(until)
                octets = self._socket.recv(_READ)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionBroken(word_of(error)) from None
            if not octets:
                raise ConnectionBroken("ConnectionClosed")
            self._buffer += octets
        if end > _MAX_LINE:
            raise ConnectionBroken("EndlessReply")
        found, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return found

    def _limit(self, until: float) -> None:
        seconds = until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._socket.settimeout(seconds)


def word_of(error: Exception) -> str:
    """The name of an error of the network or of TLS, without its text."""
    if type(error) is OSError and error.errno is not None:
        return errno.errorcode.get(error.errno, "OSError")
    return type(error).__name__


def _octets(command: str) -> bytes:
    """A command as it is sent. No control may be in it: a line end would begin a second command."""
    octets = command.encode("utf-8")
    if _CONTROL.search(octets):
        raise ValueError("a control character in a command")
    return octets + b"\r\n"
