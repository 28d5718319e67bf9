"""A smart host that answers at random: right, twice, early, not at all, with a reply to something else, cut off.

It keeps a ledger of what it took and of what it refused, and notes each mail whose text comes on a connection on which
more, or something else, was said before that mail than was asked for. A stand-in: no real host can be made to do so
by a seed.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

_RIGHT = {"EHLO": "250", "MAIL": "250", "RCPT": "250", "DATA": "354", "end": "250", "RSET": "250"}
#: Of each phase but EHLO; each `refused` also names what is refused in the ledger.
_TWISTS = ("refused", "refused for now", "twice", "early", "other", "omitted", "differing", "long", "cut", "closing")


@dataclass
class Mail:
    """What the host knows of one mail, by its sender's address."""

    #: How often each recipient's copy was taken.
    taken: Counter[str] = field(default_factory=Counter)
    #: Recipients that were refused for good, by RCPT or with the whole mail.
    refused: set[str] = field(default_factory=set)
    #: MAIL, DATA or the text was refused for good.
    all_refused: bool = False


@dataclass
class HostileHost:
    """Listens while it is used as a context."""

    chance: random.Random
    #: Of so many replies one is not the right one.
    rarity: int = 8
    mails: dict[str, Mail] = field(default_factory=dict)
    #: Mails whose text came on a connection of no more use. They may be begun there: what was said last may come late.
    reused: list[str] = field(default_factory=list)
    twists: Counter[str] = field(default_factory=Counter)
    open: int = 0

    def __enter__(self) -> HostileHost:
        self.lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def mail(self, sender: str) -> Mail:
        with self.lock:
            return self.mails.setdefault(sender, Mail())

    def wait_for_ends(self) -> None:
        """Returns when every connection is over."""
        until = time.monotonic() + 60
        while self.open:
            assert time.monotonic() < until
            time.sleep(0.001)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self.lock:
                    self.open += 1
                    chance = random.Random(self.chance.random())
                threading.Thread(target=self._serve, args=(sock, chance), daemon=True).start()

    def _serve(self, sock: socket.socket, chance: random.Random) -> None:
        with contextlib.suppress(OSError), sock:
            _Session(self, sock, chance).run()
        with self.lock:
            self.open -= 1


class _Over(OSError):
    """The host has closed the connection."""


class _Session:
    def __init__(self, host: HostileHost, sock: socket.socket, chance: random.Random) -> None:
        self._host, self._sock, self._chance = host, sock, chance
        self._buffer = b""
        self._sender = ""
        self._people: list[str] = []
        #: More, or something else, was said than was asked for.
        self._spoilt = self._of_no_use = False
        #: Replies too many: one too few between commands that came together makes up for it, and it can not be seen.
        self._surplus = 0

    def run(self) -> None:
        self._sock.sendall(b"220 hostile\r\n")
        while True:
            line = self._until(b"\r\n").decode()
            verb, _, rest = line.partition(" ")
            match verb:
                case "EHLO":
                    offers = self._chance.choice([[], ["PIPELINING"], ["PIPELINING", "SIZE 0"]])
                    lines = ["hostile", *offers]
                    self._sock.sendall(
                        "".join(f"250-{each}\r\n" for each in lines[:-1]).encode() + f"250 {lines[-1]}\r\n".encode()
                    )
                case "MAIL":
                    self._begin(rest)
                case "RCPT":
                    address = rest[rest.index("<") + 1 : -1]
                    if not self._sender:
                        self._say("503 no MAIL")
                    elif self._yes("RCPT", [address]):
                        self._people.append(address)
                case "DATA" if not self._people:
                    self._say("554 no valid recipients")
                case "DATA":
                    if self._yes("DATA", None):
                        self._end(self._until(b"\r\n.\r\n"))
                case "RSET":
                    self._sender = ""
                    self._say("250 ok")
                case "QUIT":
                    self._say("221 bye")
                    raise _Over
                case _:
                    self._say("500 what")

    def _begin(self, rest: str) -> None:
        sender = rest[rest.index("<") + 1 : rest.index(">")]
        self._of_no_use = self._spoilt or self._surplus != 0
        if self._sender:
            self._say("503 nested MAIL")
            return
        self._host.mail(sender)
        self._sender, self._people = sender, []
        if not self._yes("MAIL", None):
            self._sender = ""

    def _end(self, octets: bytes) -> None:
        mail, sender, people = self._host.mail(self._sender), self._sender, self._people
        assert sender.encode() in octets.partition(b"\r\n\r\n")[0], "a text that is another mail's"
        self._sender, self._people = "", []
        if self._of_no_use:
            self._host.reused.append(sender)
        if self._chance.randrange(self._host.rarity) or self._chance.randrange(2):
            twist = self._twist()
            if twist in ("", "twice", "early", "long"):
                # The ledger first: a mail is as good as lost that is answered for and not kept.
                mail.taken.update(people)
                self._said("end", twist, None)
                return
            if twist in ("refused", "refused for now", "closing"):
                mail.all_refused = mail.all_refused or twist == "refused"
                self._said("end", twist, None)
                return
            if self._chance.randrange(2):
                mail.taken.update(people)
            self._said("end", twist, None)
        else:  # away without a word, with the mail or without it
            if self._chance.randrange(2):
                mail.taken.update(people)
            self._go(reset=bool(self._chance.randrange(2)))

    def _yes(self, phase: str, people: list[str] | None) -> bool:
        """Answers; whether it was said, in the end, that this is well."""
        return self._said(phase, self._twist(), people)

    def _twist(self) -> str:
        twist = self._chance.choice(_TWISTS) if not self._chance.randrange(self._host.rarity) else ""
        with self._host.lock:
            self._host.twists[twist] += 1
        return twist

    def _said(self, phase: str, twist: str, people: list[str] | None) -> bool:
        right = _RIGHT[phase]
        match twist:
            case "refused":
                mail = self._host.mail(self._sender)
                if people is None:
                    mail.all_refused = True
                else:
                    mail.refused.update(people)
                self._say(self._chance.choice(["550 5.1.1 no", "554 no", "550-no\r\n550 no"]))
                return False
            case "refused for now":
                self._say(self._chance.choice(["450 4.2.1 later", "451 later", "452 too many"]))
                return False
            case "twice":
                self._surplus += 1
                self._say(f"{right} ok\r\n{right} ok")
            case "early":
                self._spoilt = True
                self._say(f"{right} ok\r\n250 ok\r\n250 ok\r\n354 go on\r\n250 queued as X")
            case "other":
                self._spoilt = True
                code = self._chance.choice([each for each in ("250", "354", "221", "334") if each != right])
                self._say(f"{code} what")
                return False
            case "omitted":
                self._surplus -= 1
                return True
            case "differing":
                self._spoilt = True
                self._say(f"{right}-ok\r\n550 no")
                return False
            case "long":
                self._say(f"{right}-ok\r\n" * self._chance.randrange(1, 200) + f"{right} ok")
            case "cut" | "closing":
                octets = f"{right}-ok\r\n{right} ok\r\n".encode()
                cut = octets[: self._chance.randrange(len(octets))]
                self._sock.sendall(cut if twist == "cut" else b"421 closing\r\n")
                self._go(reset=twist == "cut" and bool(self._chance.randrange(2)))
            case _:
                self._say(f"{right} ok")
        return True

    def _say(self, reply: str) -> None:
        self._sock.sendall(f"{reply}\r\n".encode())

    def _go(self, *, reset: bool) -> None:
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Over

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            octets = self._sock.recv(65_536)
            if not octets:
                raise _Over
            self._buffer += octets
        found, _, self._buffer = self._buffer.partition(end)
        return found
