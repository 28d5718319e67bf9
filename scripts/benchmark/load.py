"""The client that makes load: many connections in one process that does nothing but read and write sockets.

Every connection sends its next command when the reply to the last one is there, as mail libraries do; the next message
when the last one is answered. Each message has a different Message-ID. Run as a separate process, which takes a
`Load` as JSON on stdin and prints an `Outcome`:

    python -m scripts.benchmark.load
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.load instead.")

import base64
import contextlib
import itertools
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from scripts.benchmark.messages import Template, template

#: A server that says nothing for so long has failed; seconds.
PATIENCE: Final = 300.0

_RECEIVE: Final = 4096
#: What a dialogue wants written; it gets the code of the reply.
_Dialogue = Generator[tuple[bytes, ...], int, None]


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, and for how long."""

    port: int
    token: str
    #: A name of `messages.SIZES`.
    size: str
    connections: int = 32
    #: No message is begun after this; those under way are finished.
    seconds: float = 5.0
    #: Messages in all, at most; 0: as many as `seconds` allow.
    messages: int = 0
    #: Messages before a connection says QUIT and is replaced by a new one; 0: never.
    per_connection: int = 0
    #: Messages to different recipients, so many; each connection has one of them.
    recipients: int = 32

    def start(self) -> Client:
        """Begins, in a separate process."""
        return Client(self)

    def run(self) -> Outcome:
        """From beginning to end, in a separate process."""
        return self.start().wait()

    def run_alone(self) -> float:
        """The median time in seconds from MAIL to its 250, of one client that does nothing but write, and wait.

        In this process, over a plain blocking socket. Raises ConnectionError if it hears anything but what it expects.
        """
        run = _Run(self)
        run.until = time.perf_counter() + self.seconds
        dialogue = _converse(run, 0)
        next(dialogue)
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(StopIteration):
                while True:
                    received = b""
                    while not (code := _code(received)):
                        octets = connection.recv(_RECEIVE)
                        if not octets:
                            raise ConnectionError("closed")
                        received += octets
                    connection.sendall(b"".join(dialogue.send(code)))
        if run.refused:
            raise ConnectionError(f"{run.refused} messages were refused")
        return statistics.median(run.latencies)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went."""

    accepted: int
    #: Messages answered with anything but 250.
    refused: int
    #: Connections that ended, or were refused, without being asked to.
    failed: int
    #: From the first connection to the last reply.
    seconds: float
    #: From MAIL to its 250, of each accepted message, ascending, in seconds; a sample of at most 10,000.
    latencies: list[float] = field(repr=False)
    #: CPU time of the client itself, in seconds.
    client_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Accepted messages a second."""
        return self.accepted / self.seconds

    def percentile(self, percent: float) -> float:
        """Of the latencies, in seconds."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))]


class Client:
    """A running load."""

    def __init__(self, load: Load) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmark.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent.parent,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(load)).encode())
        self._process.stdin.close()

    def wait(self) -> Outcome:
        """What it came to, when it has ended by itself."""
        assert self._process.stdout is not None
        printed = self._process.stdout.read()
        if self._process.wait() != 0:
            raise RuntimeError("the load client failed")
        return Outcome(**json.loads(printed))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class _Run:
    """The state that all connections of one load share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.message: Template = template(load.size)
        self.selector = selectors.DefaultSelector()
        credentials = base64.b64encode(b"\0benchmark\0" + load.token.encode()).decode()
        self.auth = f"AUTH PLAIN {credentials}\r\n".encode()
        self.run_id = uuid.uuid4().hex[:12]
        self.numbers = itertools.count()
        self.begun = 0
        self.refused = self.failed = 0
        self.latencies: list[float] = []
        self.open = 0
        self.until = 0.0

    def more(self) -> bool:
        """Whether another message may be begun."""
        return time.perf_counter() < self.until and not 0 < self.load.messages <= self.begun

    def run(self) -> Outcome:
        began = time.perf_counter()
        self.until = began + self.load.seconds
        for number in range(self.load.connections):
            _Connection(self, number)
        while self.open:
            events = self.selector.select(PATIENCE)
            if not events:
                raise TimeoutError("the server has said nothing for a long time")
            for key, mask in events:
                key.data.ready(mask)
        self.latencies.sort()
        step = max(1, len(self.latencies) // 10_000)
        return Outcome(
            accepted=len(self.latencies),
            refused=self.refused,
            failed=self.failed,
            seconds=time.perf_counter() - began,
            latencies=self.latencies[::step],
            client_cpu=time.process_time(),
        )


class _Connection:
    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._number = number
        self._unsent: deque[memoryview] = deque()
        self._received = b""
        self._socket = socket.create_connection(("127.0.0.1", run.load.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._dialogue = _converse(run, number)
        next(self._dialogue)
        self._mask = selectors.EVENT_READ
        run.selector.register(self._socket, self._mask, self)
        run.open += 1

    def ready(self, mask: int) -> None:
        """Called when the socket can be read or written."""
        try:
            if mask & selectors.EVENT_WRITE:
                self._send()
            if mask & selectors.EVENT_READ:
                self._receive()
        except (OSError, StopIteration) as end:
            if isinstance(end, OSError):
                self._run.failed += 1
            self._run.selector.unregister(self._socket)
            self._socket.close()
            self._run.open -= 1
            if isinstance(end, StopIteration) and self._run.more():
                _Connection(self._run, self._number)

    def _receive(self) -> None:
        octets = self._socket.recv(_RECEIVE)
        if not octets:
            raise ConnectionError
        self._received += octets
        code = _code(self._received)
        if code:
            self._received = b""
            self._unsent.extend(memoryview(piece) for piece in self._dialogue.send(code))
            self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                sent = self._socket.sendmsg(self._unsent)
                while self._unsent and sent >= len(self._unsent[0]):
                    sent -= len(self._unsent.popleft())
                if sent:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if wanted != self._mask:
            self._mask = wanted
            self._run.selector.modify(self._socket, wanted, self)


def _converse(run: _Run, number: int) -> _Dialogue:
    """The dialogue of a run's connection of that number."""
    recipient = f"customer-{number % run.load.recipients}@example.net"
    rcpt = (f"RCPT TO:<{recipient}>\r\n".encode(),)
    _expect(220, (yield ()))
    _expect(250, (yield (b"EHLO client.example\r\n",)))
    _expect(235, (yield (run.auth,)))
    sent = 0
    while run.more() and (sent < run.load.per_connection or not run.load.per_connection):
        run.begun += 1
        sent += 1
        began = time.perf_counter()
        _expect(250, (yield (b"MAIL FROM:<bounces@shop.example>\r\n",)))
        _expect(250, (yield rcpt))
        _expect(354, (yield (b"DATA\r\n",)))
        code = yield run.message.fill(recipient, f"{run.run_id}.{next(run.numbers)}")
        if code == 250:
            run.latencies.append(time.perf_counter() - began)
        else:
            run.refused += 1
    _expect(221, (yield (b"QUIT\r\n",)))


def _code(received: bytes) -> int:
    """The code of a reply that is complete, else 0."""
    last_line = received[received.rfind(b"\r\n", 0, -2) + 1 :].lstrip()
    return int(last_line[:3]) if received.endswith(b"\r\n") and last_line[3:4] == b" " else 0


def _expect(wanted: int, code: int) -> None:
    if code != wanted:
        raise ConnectionError(f"{code} instead of {wanted}")


def main() -> None:
    """Reads a `Load`, prints an `Outcome`."""
    print(json.dumps(asdict(_Run(Load(**json.load(sys.stdin))).run())))


if __name__ == "__main__":
    main()
