"""A slowloris in full size: thousands of connections that say an octet every ten seconds, and come again when they are
sent away; and a quick client among them.
"""

from __future__ import annotations

import contextlib
import random
import resource
import select
import socket
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import psutil

from tests.faults.load import Conversation, plain
from tests.faults.stage import Stage

#: Seconds between two octets of a slow client.
PAUSE_SECONDS: Final = 10.0
#: What one of them may cost, in octets: its greenlet, its session, its buffers.
MOST_EACH: Final = 60_000
#: How many of them have one address.
_FROM_ONE_ADDRESS: Final = 200


@dataclass(slots=True)
class Siege:
    """What came of it."""

    clients: int
    #: Connections that slow clients made, and how the relay ended those that it did.
    connections: int = 0
    farewells: Counter[str] = field(default_factory=Counter)
    #: Slow connections that were open at once.
    most_open: int = 0
    #: Seconds that the quick client's mails took, from MAIL to 250.
    mails: list[float] = field(default_factory=list)
    #: Octets of the workers' resident memory before, and the most meanwhile.
    memory_before: int = 0
    memory_most: int = 0
    #: CPU seconds of the workers.
    cpu: float = 0.0

    @property
    def octets_each(self) -> float:
        """Memory that a slow client cost."""
        return (self.memory_most - self.memory_before) / self.clients

    @property
    def median(self) -> float:
        """Of the quick client's mails."""
        return statistics.median(self.mails)


class _Slow:
    """One slow client's connection."""

    def __init__(self, port: int, number: int, opening: bytes) -> None:
        source = f"127.0.{100 + number // _FROM_ONE_ADDRESS}.1"
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
        self.socket.setblocking(False)
        self.number = number
        self.said = b""
        self.socket.send(opening)


def besiege(stage: Stage, clients: int, seconds: float, *, seed: int) -> Siege:
    """Keeps `clients` slow connections up for so long, while one client sends mails. The relay has to let as many in.

    Raises AssertionError where a mail is not accepted or the memory grows past its bound.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _Besiegers(stage, clients, random.Random(seed)).run(seconds)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class _Besiegers:
    def __init__(self, stage: Stage, clients: int, chance: random.Random) -> None:
        self._stage = stage
        self._port = stage.relay.port
        self._chance = chance
        self._siege = Siege(clients)
        self._poll = select.poll()
        self._slow: dict[int, _Slow] = {}
        #: By when each has its next octet to say.
        self._turns: list[tuple[float, _Slow]] = []
        login = b"EHLO x\r\nAUTH PLAIN " + plain(stage.key.token) + b"\r\n"
        envelope = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
        #: What a slow client says at once; only then it is slow.
        self._openings = (
            b"E",
            b"EHLO slow.examp",
            b"EHLO x\r\nAUTH LOGIN\r\n",
            login + envelope + b"DATA\r\nSubject: ",
            login + envelope + b"BDAT 90000 LAST\r\n",
        )

    def run(self, seconds: float) -> Siege:
        siege, workers = self._siege, self._stage.workers()
        with contextlib.ExitStack() as closing:
            closing.callback(self._close)
            with contextlib.closing(self._stage.talk()) as quick:
                self._send_mail(quick)
            siege.mails.clear()
            siege.memory_before, cpu_before = _memory(workers), _cpu(workers)
            until = time.monotonic() + seconds
            for number in range(siege.clients):
                self._connect(number)
            next_mail = time.monotonic()
            quick = closing.enter_context(contextlib.closing(self._stage.talk()))
            while (now := time.monotonic()) < until:
                self._hear(0.05)
                self._dribble(now)
                if now >= next_mail:
                    next_mail = now + 0.5
                    # One that is there already, and one that comes anew.
                    self._send_mail(quick)
                    with contextlib.closing(self._stage.talk()) as another:
                        self._send_mail(another)
                    siege.memory_most = max(siege.memory_most, _memory(workers))
                    siege.most_open = max(siege.most_open, len(self._slow))
            siege.cpu = _cpu(workers) - cpu_before
        assert workers == self._stage.workers()
        assert siege.most_open >= siege.clients * 0.98, siege.most_open
        assert siege.octets_each < MOST_EACH, siege.octets_each
        return siege

    def _connect(self, number: int) -> None:
        slow = _Slow(self._port, number, self._openings[number % len(self._openings)])
        self._siege.connections += 1
        self._slow[slow.socket.fileno()] = slow
        self._poll.register(slow.socket, select.POLLIN)
        self._turns.append((time.monotonic() + self._chance.uniform(0, PAUSE_SECONDS), slow))

    def _hear(self, seconds: float) -> None:
        """Takes what the relay says; who is sent away comes again."""
        for descriptor, _ in self._poll.poll(seconds * 1000):
            slow = self._slow[descriptor]
            try:
                octets = slow.socket.recv(4096)
            except OSError:
                octets = b""
            slow.said = (slow.said + octets)[-200:]
            if not octets:
                farewell = slow.said.split(b"\r\n")[-2:-1] or [b"nothing"]
                self._siege.farewells[farewell[0].decode(errors="replace")] += 1
                self._poll.unregister(descriptor)
                del self._slow[descriptor]
                slow.socket.close()
                self._connect(slow.number)

    def _dribble(self, now: float) -> None:
        due = [slow for moment, slow in self._turns if moment <= now]
        self._turns = [turn for turn in self._turns if turn[0] > now]
        for slow in due:
            if slow.socket.fileno() < 0:
                continue
            with contextlib.suppress(OSError):
                slow.socket.send(b"x")
            self._turns.append((now + PAUSE_SECONDS, slow))

    def _send_mail(self, quick: Conversation) -> None:
        began = time.perf_counter()
        quick.command(b"MAIL FROM:<a@b.example>", b"250")
        quick.command(b"RCPT TO:<c@d.example>", b"250")
        quick.command(b"DATA", b"354")
        quick.command(b"From: a@b.example\r\nTo: c@d.example\r\nSubject: quick\r\n\r\nHello\r\n.", b"250")
        self._siege.mails.append(time.perf_counter() - began)

    def _close(self) -> None:
        for slow in self._slow.values():
            slow.socket.close()


def _memory(workers: list[psutil.Process]) -> int:
    return sum(worker.memory_info().rss for worker in workers)


def _cpu(workers: list[psutil.Process]) -> float:
    return sum(sum(worker.cpu_times()[:2]) for worker in workers)
