"""Clients that send until they are told to stop, and write down every reply that they saw.

They behave as mail servers do: what was not answered by 250 is sent again, the same octets, until it is. Some give up
instead, as an impatient application does, so that there are messages whose fate the client does not know.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import random
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

_QUEUED: Final = re.compile(rb"queued as ([0-9a-f-]{36})")


class Fate(Enum):
    """How one attempt to send a message ended, as its client saw it."""

    ACCEPTED = "250"
    TEMPORARY = "4xx"
    PERMANENT = "5xx"
    #: No connection, or none that got as far as the final dot: the relay can't have taken the message.
    BEFORE_DOT = "lost before the dot"
    #: The dot was sent and no reply came: the relay may have taken it.
    AFTER_DOT = "lost after the dot"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. `reply` is the last line that the client read; `seconds` from the dot to the reply."""

    fate: Fate
    reply: bytes = b""
    email_id: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Mail:
    """One message. Its number is its subject, which is how its rows are found; each has different recipients."""

    number: int
    octets: bytes
    recipients: tuple[str, ...]
    #: Whether the relay can know a repeat: by Message-ID, or by an idempotency key.
    recognisable: bool = True
    keyed: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def accepted_as(self) -> set[str]:
        """The ids that 250s named."""
        return {attempt.email_id for attempt in self.attempts if attempt.fate is Fate.ACCEPTED}

    @property
    def may_have_row(self) -> bool:
        """Without a 250: whether the relay may have stored it all the same, as far as the client knows.

        451 includes an INSERT whose outcome could not be found out.
        """
        return any(
            attempt.fate is Fate.AFTER_DOT or attempt.reply.startswith((b"451", b"421")) for attempt in self.attempts
        )


class Lost(Exception):
    """The connection is gone."""


class Conversation:
    """An SMTP client's side of one connection."""

    def __init__(self, port: int, token: str | None, *, timeout: float = 30.0, tls: bool = False) -> None:
        """Connects, and authenticates if there is a token. Raises Lost; `refused` tells a refused connection."""
        self._buffer = b""
        try:
            self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        except OSError as error:
            raise Lost(type(error).__name__) from error
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.expect(b"220")
            self.command(b"EHLO client.example", b"250")
            if tls:
                self.command(b"STARTTLS", b"220")
                self.socket = unverified().wrap_socket(self.socket)
                self.command(b"EHLO client.example", b"250")
            if token is not None:
                self.command(b"AUTH PLAIN " + plain(token), b"235")
        except OSError as error:
            self.close()
            raise Lost(type(error).__name__) from error
        except Lost:
            self.close()
            raise

    def reply(self) -> bytes:
        """The last line of the next reply. Raises Lost."""
        while True:
            line, found, rest = self._buffer.partition(b"\r\n")
            if found:
                self._buffer = rest
                if line[3:4] != b"-":
                    return line
                continue
            try:
                octets = self.socket.recv(65536)
            except OSError as error:
                raise Lost(type(error).__name__) from error
            if not octets:
                raise Lost("closed")
            self._buffer += octets

    def expect(self, code: bytes) -> bytes:
        """The next reply, which must begin so. Raises Lost with the reply where it does not."""
        line = self.reply()
        if not line.startswith(code):
            raise Lost(line.decode(errors="replace"))
        return line

    def command(self, line: bytes, code: bytes) -> bytes:
        """Sends a command and takes its reply."""
        self.send(line + b"\r\n")
        return self.expect(code)

    def send(self, octets: bytes) -> None:
        """Raises Lost."""
        try:
            self.socket.sendall(octets)
        except OSError as error:
            raise Lost(type(error).__name__) from error

    def deliver(self, mail: Mail) -> Attempt:
        """One whole transaction. The connection is of no use any more after any fate but 250 and 4xx."""
        try:
            recipients = b"".join(b"RCPT TO:<%b>\r\n" % recipient.encode() for recipient in mail.recipients)
            self.send(b"MAIL FROM:<ann@example.com>\r\n" + recipients + b"DATA\r\n")
            for _ in range(len(mail.recipients) + 1):
                self.expect(b"250")
            self.expect(b"354")
            # All but the end, so that a message whose client dies here can't have been complete.
            self.send(mail.octets)
        except Lost as lost:
            return Attempt(Fate.BEFORE_DOT, str(lost).encode())
        began = time.monotonic()
        try:
            self.send(b".\r\n")
            line = self.reply()
        except Lost as lost:
            return Attempt(Fate.AFTER_DOT, str(lost).encode(), seconds=time.monotonic() - began)
        took = time.monotonic() - began
        if line.startswith(b"250"):
            found = _QUEUED.search(line)
            assert found is not None, line
            return Attempt(Fate.ACCEPTED, line, found[1].decode(), took)
        return Attempt(Fate.TEMPORARY if line.startswith(b"4") else Fate.PERMANENT, line, seconds=took)

    def close(self) -> None:
        """Without a QUIT."""
        self.socket.close()


class Load:
    """Several clients at once. As a context manager: they send while the body runs, and finish after it."""

    def __init__(
        self,
        port: int,
        token: str,
        *,
        clients: int = 8,
        pause: float = 0.01,
        large: int = 60_000,
        patience: float = 60.0,
    ) -> None:
        """`pause`: seconds between messages of a client. One in ten messages has `large` octets. `patience`: seconds
        for which a client repeats one message, and waits for one reply."""
        self._port = port
        self._token = token
        self._pause = pause
        self._large = large
        self._patience = patience
        self.mails: list[Mail] = []
        #: Connections that were refused or cut before the greeting, by the reason.
        self.not_greeted: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self._patience + 60)
            assert not thread.is_alive(), "a client hangs"

    def accepted(self) -> int:
        """Messages that were answered by 250 so far."""
        return sum(bool(mail.accepted_as) for mail in list(self.mails))

    def fates(self) -> Counter[str]:
        """How many attempts ended how."""
        return Counter(attempt.fate.value for mail in self.mails for attempt in mail.attempts)

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        with contextlib.closing(_Line(self._port, self._token, self._patience, self.not_greeted)) as line:
            while not self._stop.is_set():
                mail = self._mail(chance)
                self.mails.append(mail)
                gives_up = chance.random() < 0.2
                until = time.monotonic() + self._patience
                while time.monotonic() < until:
                    attempt = line.deliver(mail)
                    mail.attempts.append(attempt)
                    if attempt.fate in (Fate.ACCEPTED, Fate.PERMANENT) or gives_up:
                        break
                    time.sleep(0.2)
                self._stop.wait(chance.uniform(0.5, 1.5) * self._pause)

    def _mail(self, chance: random.Random) -> Mail:
        number = next(self._numbers)
        return make_mail(
            number,
            recipients=chance.choice((1, 1, 1, 2, 5)),
            keyed=chance.random() < 0.3,
            size=self._large if chance.random() < 0.1 else 200,
        )


class _Line:
    """A client's connection, made again when it is lost."""

    def __init__(self, port: int, token: str, patience: float, not_greeted: Counter[str]) -> None:
        self._port = port
        self._token = token
        self._patience = patience
        self._not_greeted = not_greeted
        self._conversation: Conversation | None = None

    def deliver(self, mail: Mail) -> Attempt:
        if self._conversation is None:
            try:
                self._conversation = Conversation(self._port, self._token, timeout=self._patience)
            except Lost as lost:
                self._not_greeted[str(lost)] += 1
                return Attempt(Fate.BEFORE_DOT, str(lost).encode())
        attempt = self._conversation.deliver(mail)
        if attempt.fate not in (Fate.ACCEPTED, Fate.TEMPORARY):
            self.close()
        return attempt

    def close(self) -> None:
        if self._conversation is not None:
            self._conversation.close()
            self._conversation = None


def make_mail(
    number: int, *, recipients: int = 1, keyed: bool = False, size: int = 200, message_id: bool = True
) -> Mail:
    """A message of about `size` octets."""
    people = tuple(f"r{number}-{index}@x.example" for index in range(recipients))
    head = [
        "From: ann@example.com",
        "To: " + ", ".join(people),
        f"Subject: {number}",
        *([f"Message-ID: <{number}@faults.example>"] if message_id else []),
        *([f"Idempotency-Key: key-{number}"] if keyed else []),
    ]
    line = "All is well that is answered.\r\n"
    text = "\r\n".join([*head, "", line * max(1, size // len(line))]).encode()
    return Mail(number, text, people, recognisable=message_id or keyed, keyed=keyed)


def plain(token: str) -> bytes:
    """The initial response of AUTH PLAIN."""
    return base64.b64encode(b"\0user\0" + token.encode())


def unverified() -> ssl.SSLContext:
    """A client's context for a self-signed certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def conversation(port: int, token: str | None, **options: bool | float) -> Iterator[Conversation]:
    """A conversation that is closed at the end."""
    client = Conversation(port, token, **options)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        client.close()
