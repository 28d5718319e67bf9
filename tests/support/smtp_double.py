"""A smart host that answers as a test wants it to: a stand-in, since no real one can be made to fail in each way.

It speaks SMTP over TCP, with TLS and AUTH, and keeps a ledger of what it took. `odd` says what it does, once, in place
of its usual answer at a phase; see `Odd`.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: Where something odd may happen, in order. `text`: when the first octets of a mail have come; `end`: at its end.
PHASES = ("banner", "EHLO", "STARTTLS", "handshake", "EHLO again", "AUTH", "MAIL", "RCPT", "DATA", "text", "end")
#: Beside a reply: what happens to the connection.
HANG, RESET, CLOSE, HALF, RUBBISH, ENDLESS_LINE, ENDLESS_REPLY = (
    "hang",
    "reset",
    "close",
    "half a line",
    "rubbish",
    "endless line",
    "endless reply",
)
#: What the text of a reply to RCPT ends with behind which the connection is closed, as Exim does (`drop`).
CLOSED_BEHIND = "; closing"
USER, PASSWORD = "ann", "the password"


@dataclass(frozen=True)
class Odd:
    """`answer`: a reply, or one of the words above. `taken`: whether the mail counts as taken, at the phase `end`."""

    phase: str
    answer: str
    taken: bool = False


@dataclass(frozen=True)
class Taken:
    sender: str
    recipients: tuple[str, ...]
    #: With dots unstuffed.
    octets: bytes
    parameters: str


class Ended(Exception):
    """The connection is over."""


@dataclass
class SmtpDouble:
    """Listens while it is used as a context. `answers`: address -> replies to RCPT, one after the other."""

    context: ssl.SSLContext | None = None
    implicit: bool = False
    offers: tuple[str, ...] = ("PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
    mechanisms: str = "PLAIN LOGIN"
    answers: Mapping[str, list[str]] = field(default_factory=dict)
    most_recipients: int = 100
    #: At the same time; a further one is refused.
    most_connections: int = 1000
    #: Called with each command, for tests that look at the dialogue.
    heard: Callable[[str], None] = lambda _: None
    odd: Odd | None = None
    taken: list[Taken] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    served: int = 0
    most_open: int = 0

    def __enter__(self) -> SmtpDouble:
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def next_odd(self, *phases: str) -> Odd | None:
        """What is to happen at one of these phases, once."""
        with self._lock:
            if self.odd is None or self.odd.phase not in phases:
                return None
            odd, self.odd = self.odd, None
            return odd

    def wait_for_ends(self) -> None:
        """Returns when every connection is over, so that the ledger is complete."""
        self._over.set()
        until = time.monotonic() + 30
        while self.open:
            assert time.monotonic() < until
            time.sleep(0.001)

    def wait_over(self) -> None:
        self._over.wait(60)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self.open += 1
                self.most_open = max(self.most_open, self.open)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        session = _Session(self, sock)
        with self._lock:
            full = self.served >= self.most_connections
            self.served += not full
        with contextlib.suppress(OSError, Ended):
            if full:
                sock.sendall(b"421 4.7.0 Too many connections\r\n")
            else:
                session.run()
        with contextlib.suppress(OSError):
            session.sock.close()
        with self._lock:
            self.served -= not full
            self.open -= 1

    def keep(self, taken: Taken) -> int:
        with self._lock:
            self.taken.append(taken)
            return len(self.taken)

    def answer_to(self, address: str, number: int) -> str:
        with self._lock:
            replies = self.answers.get(address)
            if replies:
                return replies.pop(0)
        return "250 2.1.5 Ok" if number <= self.most_recipients else "452 4.5.3 Too many recipients"


class _Session:
    def __init__(self, host: SmtpDouble, sock: socket.socket) -> None:
        self.host = host
        self.sock = sock
        self.buffer = b""
        self.secured = self.authenticated = False
        self.sender: str | None = None
        self.parameters = ""
        self.recipients: list[str] = []

    def run(self) -> None:
        if self.host.implicit:
            self.secure()
        self.say("220 double.example ESMTP", "banner")
        while True:
            command = self.line()
            self.host.heard(command)
            verb = command.split(":", 1)[0].split(" ", 1)[0].upper()
            getattr(self, f"do_{verb.lower()}", self.unknown)(command)

    def unknown(self, command: str) -> None:
        self.say("500 5.5.1 What?")

    def do_ehlo(self, command: str) -> None:
        offers = list(self.host.offers)
        if self.host.context is not None and not self.secured:
            offers.append("STARTTLS")
        elif self.host.mechanisms:
            offers.append(f"AUTH {self.host.mechanisms}")
        lines = ["double.example", *offers]
        text = "".join(f"250-{each}\r\n" for each in lines[:-1]) + f"250 {lines[-1]}"
        self.say(text, "EHLO again" if self.secured else "EHLO")

    def do_starttls(self, command: str) -> None:
        if self.say("220 2.0.0 Go on", "STARTTLS"):
            self.secure()

    def secure(self) -> None:
        odd = self.host.next_odd("handshake")
        if odd is not None:
            self.act(odd.answer)
        assert self.host.context is not None
        self.sock = self.host.context.wrap_socket(self.sock, server_side=True)
        self.secured = True

    def do_auth(self, command: str) -> None:
        _, mechanism, *initial = command.split(" ")
        if mechanism == "PLAIN":
            given = base64.b64decode(initial[0]).decode().split("\0")[1:]
        else:
            self.say("334 VXNlcm5hbWU6")
            user = base64.b64decode(self.line()).decode()
            self.say("334 UGFzc3dvcmQ6")
            given = [user, base64.b64decode(self.line()).decode()]
        right = given == [USER, PASSWORD]
        said = self.say("235 2.7.0 Fine" if right else f"535 5.7.8 Not {given[1]} for {given[0]}", "AUTH")
        self.authenticated = right and said

    def do_mail(self, command: str) -> None:
        if self.host.mechanisms and not self.authenticated:
            self.say("530 5.7.0 Authentication required")
            return
        if self.sender is not None:
            self.say("503 5.5.1 Nested MAIL")
            return
        if self.say("250 2.1.0 Ok", "MAIL"):
            path, _, self.parameters = command[len("MAIL FROM:") :].partition("> ")
            self.sender, self.recipients = path.strip("<>"), []

    def do_rcpt(self, command: str) -> None:
        if self.sender is None:
            self.say("503 5.5.1 No MAIL")
            return
        address = command[len("RCPT TO:") :].strip("<>")
        answer = self.host.answer_to(address, len(self.recipients) + 1)
        if self.say(answer, "RCPT") and answer.startswith("2"):
            self.recipients.append(address)
        if answer.endswith(CLOSED_BEHIND):
            raise Ended

    def do_rset(self, command: str) -> None:
        self.sender = None
        self.say("250 2.0.0 Ok")

    def do_noop(self, command: str) -> None:
        self.say("250 2.0.0 Ok")

    def do_quit(self, command: str) -> None:
        self.say("221 2.0.0 Bye")
        raise Ended

    def do_data(self, command: str) -> None:
        if not self.recipients:
            self.say("554 5.5.1 No valid recipients")
            return
        if not self.say("354 Go on", "DATA"):
            return
        octets = self.text()
        taken = Taken(self.sender or "", tuple(self.recipients), octets, self.parameters)
        self.sender = None
        odd = self.host.next_odd("end")
        if odd is None or odd.taken:
            number = self.host.keep(taken)
        self.act(odd.answer if odd is not None else f"250 2.0.0 Ok: queued as D{number}")

    def text(self) -> bytes:
        """Message data to CRLF.CRLF and nothing else."""
        octets = b"\r\n"
        while (end := octets.find(b"\r\n.\r\n")) < 0:
            octets += self.more()
            odd = self.host.next_odd("text")
            if odd is not None:
                self.act(odd.answer)
                if odd.answer[:1].isdigit():
                    raise Ended
        self.buffer = octets[end + 5 :]
        return octets[: end + 2].replace(b"\r\n.", b"\r\n")[2:]

    def line(self) -> str:
        while b"\r\n" not in self.buffer:
            self.buffer += self.sock.recv(65536) or self.end()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line.decode()

    def more(self) -> bytes:
        if self.buffer:
            octets, self.buffer = self.buffer, b""
            return octets
        return self.sock.recv(65536) or self.end()

    def end(self) -> bytes:
        raise Ended

    def say(self, reply: str, *phases: str) -> bool:
        """Whether that was said, and nothing else."""
        odd = self.host.next_odd(*phases)
        self.act(reply if odd is None else odd.answer)
        return odd is None

    def act(self, answer: str) -> None:
        match answer:
            case "hang":
                self.host.wait_over()
                raise Ended
            case "reset":
                raw = self.sock
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise Ended
            case "close":
                raise Ended
            case "half a line":
                self.sock.sendall(b"25")
                raise Ended
            case "rubbish":
                self.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            case "endless line":
                self.sock.sendall(b"250 " + b"x" * 100_000)
                self.host.wait_over()
                raise Ended
            case "endless reply":
                self.sock.sendall(b"250-x\r\n" * 10_000)
                self.host.wait_over()
                raise Ended
            case _:
                self.sock.sendall(answer.encode() + b"\r\n")
                if answer.startswith("421"):
                    raise Ended
