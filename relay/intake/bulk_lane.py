"""The lane for large messages: parsed and stored in a process of its own, as many at a time as there is memory for.

Parsing tens of megabytes and building a statement of them are CPU work that no greenlet can interrupt; over there they
hold up nobody. `SMTP_RELAY_MEMORY_BUDGET_BYTES` bounds the memory: whoever finds it used up waits for a turn, with the
client waiting at the final dot. The process is started by the first large message and ended after a while without one.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import time
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Final, cast

import gevent
import structlog
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore

from relay.core.supervision import Supervised, run_once, supervise
from relay.intake.bulk_protocol import head_of, receive_message, send_message, verdict_of
from relay.intake.memory_budget import MemoryBudget
from relay.smtp import replies
from relay.smtp.submission import Submission, Verdict

log = structlog.get_logger(__name__)

#: How long a message may take in the process, once it is its turn; seconds.
WORK_SECONDS: Final = 90.0
#: How long it may wait for its turn. Clients wait ten minutes at the final dot (RFC 5321 section 4.5.3.2.6); seconds.
TURN_SECONDS: Final = 300.0
#: The process ends after so long without a message; seconds.
IDLE_SECONDS: Final = 60.0
#: Pages of 2 MB under its buffers, where glibc (from 2.35 on) and the kernel have them: a fourteenth less CPU.
_LARGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
#: Octets of memory that it takes at most to parse and store one octet of a message: measured with 10 and 39 MB.
FOOTPRINT: Final = 5


class BulkLane:
    """Accepts spooled messages, for any number of greenlets.

    `settings`: as `Settings.to_json` gives them; `budget`: octets of memory for all messages together.
    """

    def __init__(self, settings: bytes, budget: int) -> None:
        self._settings = settings
        self._budget = MemoryBudget(budget)
        self._process: _Process | None = None
        self._starting = BoundedSemaphore(1)
        self._watcher: Supervised | None = None

    def store(self, submission: Submission) -> Verdict:
        """Stores a message, or says why not: 452 when its turn did not come, 451 when the process failed."""
        with self._budget.part(submission.body.size * FOOTPRINT, TURN_SECONDS) as granted:
            if not granted:
                return Verdict(replies.NO_ROOM, "no_turn")
            try:
                process = self._running()
                return process.store(submission, WORK_SECONDS)
            except (OSError, EOFError) as error:
                log.error("process for large messages failed", reason=type(error).__name__)
                self._end()
                return Verdict(replies.TRY_LATER, "bulk_unavailable")

    def close(self) -> None:
        """Ends the process."""
        if self._watcher is not None:
            self._watcher.stop()
        self._end()

    def _running(self) -> _Process:
        with self._starting:
            if self._process is not None and self._process.deaf:
                self._end()
            if self._process is None:
                self._process = _Process(self._settings)
                self._watcher = supervise("large-lane-idle", self._end_when_idle, self._process, ends=True)
            return self._process

    def _end_when_idle(self, process: _Process) -> None:
        while process is self._process:
            idle = process.idle_seconds()
            if idle >= IDLE_SECONDS:
                self._end()
                return
            gevent.sleep(IDLE_SECONDS - idle)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Process:
    """The child process, and what it has been given to do."""

    def __init__(self, settings: bytes) -> None:
        """Starts it. Raises OSError."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "relay.process.bulk", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).parents[2],
                stdin=DEVNULL,
                env={**_LARGE_PAGES, **os.environ},
            )
        self._sending = BoundedSemaphore(1)
        self._numbers = itertools.count()
        self._open: dict[int, AsyncResult[Verdict]] = {}
        self._last_used = time.monotonic()
        send_message(self._channel, settings)
        # Not supervised: after an error in the midst of an answer nobody knows where the next one begins. `deaf` tells.
        self._listener = run_once("large-lane-listener", self._listen)

    def store(self, submission: Submission, seconds: float) -> Verdict:
        """Has a message stored. Raises OSError and EOFError when the process failed, or took longer."""
        number = next(self._numbers)
        verdict = self._open[number] = AsyncResult()
        try:
            with gevent.Timeout(seconds, TimeoutError):
                with self._sending:
                    send_message(self._channel, head_of(number, submission), [submission.body.fileno()])
                return cast("Verdict", verdict.get())
        finally:
            del self._open[number]
            self._last_used = time.monotonic()

    @property
    def deaf(self) -> bool:
        """Whether nobody would hear its answers."""
        return bool(self._listener.dead)

    def idle_seconds(self) -> float:
        """How long it has had nothing to do."""
        return 0.0 if self._open else time.monotonic() - self._last_used

    def end(self) -> None:
        """Ends the process; whoever still waits hears EOFError."""
        self._listener.kill()
        self._channel.close()
        self._fail_open()
        self._process.kill()
        # Reaped before anybody else asks for the descriptors that it had.
        run_once("large-lane-reaper", self._process.wait)

    def _listen(self) -> None:
        """Hands out the verdicts, until the process ends."""
        try:
            while (document := receive_message(self._channel)) is not None:
                answer = json.loads(document)
                waiting = self._open.get(answer["number"])
                if waiting is not None:
                    waiting.set(verdict_of(answer))
        except OSError:
            # Whoever waits is told below.
            pass
        finally:
            self._fail_open()

    def _fail_open(self) -> None:
        for waiting in self._open.values():
            if not waiting.ready():
                waiting.set_exception(EOFError())
