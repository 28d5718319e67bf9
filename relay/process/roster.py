"""The workers as the master sees them: which there are, are due to be forked, ended too soon, or hang."""

from __future__ import annotations

import os
import signal
import time

from relay.process.heartbeat import Heartbeats, Watch

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from typing import Final

#: A worker that lived this long had started; seconds.
STARTED_AFTER: Final = 3.0
#: The pause before a worker is replaced doubles with each quick end, between these bounds; seconds.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
#: When no worker has ever started, so many quick ends end the service: the platform sees it.
HOPELESS_AFTER: Final = 4
#: A hung worker gets so long to write where it hangs, before it is killed; seconds.
DUMP_SECONDS: Final = 1.0
#: Makes a worker write its stack to standard error: see `relay.process.children`.
DUMP_SIGNAL: Final = signal.SIGUSR2


def pause_after(deaths: int) -> float:
    """Seconds until a process is forked again, after so many quick ends in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * float(2 ** min(deaths, 16)))


class Worker:
    """A process that serves."""

    def __init__(self, heartbeats: Heartbeats, index: int, pid: int) -> None:
        self.index = index
        self.pid = pid
        self.watch = Watch(heartbeats, index, pid)
        #: When it is killed, if it is taken for hung.
        self.kill_at: float | None = None
        self._forked = time.monotonic()

    def lived(self) -> float:
        """For how many seconds."""
        return time.monotonic() - self._forked


class Roster:
    """All workers of a service."""

    def __init__(self, heartbeats: Heartbeats, count: int) -> None:
        self._heartbeats = heartbeats
        #: By process id. What is here has not been waited for, so that no other process has its id.
        self.workers: dict[int, Worker] = {}
        #: index -> when it is due to be forked
        self.due = dict.fromkeys(range(count), 0.0)
        #: index -> quick ends in a row
        self._quick_deaths = dict.fromkeys(range(count), 0)
        self._any_started = False
        #: The index of a hung worker, until its successor serves.
        self._replacing: int | None = None

    def begin(self, index: int, pid: int) -> None:
        """Takes note of a worker that was forked."""
        self.workers[pid] = Worker(self._heartbeats, index, pid)

    def take_due(self, now: float) -> list[int]:
        """The indices of those that are to be forked now."""
        indices = [index for index, moment in self.due.items() if moment <= now]
        for index in indices:
            del self.due[index]
        return indices

    def serves(self) -> bool:
        """Whether any worker serves."""
        return any(worker.watch.served for worker in self.workers.values())

    def signal_all(self, number: signal.Signals) -> None:
        """Sends a signal to each."""
        for pid in self.workers:
            os.kill(pid, number)

    def died(self, worker: Worker, *, at_once: bool) -> float | None:
        """How long to wait before it is replaced; None: there is no point in going on.

        `at_once`: it refused to start as it is configured, so that one end is enough.
        """
        if worker.lived() >= STARTED_AFTER:
            self._any_started = True
            self._quick_deaths[worker.index] = 0
        else:
            self._quick_deaths[worker.index] += 1
        deaths = self._quick_deaths[worker.index]
        started = self._any_started or any(other.lived() >= STARTED_AFTER for other in self.workers.values())
        return None if (at_once or deaths >= HOPELESS_AFTER) and not started else pause_after(deaths)

    def look(self, now: float) -> Worker | None:
        """To be called every BEAT_SECONDS: a worker that was found to have hung, and will be killed.

        One at a time, since what hangs them may pass. It gets a signal to write where it hangs.
        """
        found: Worker | None = None
        for worker in self.workers.values():
            hung = worker.watch.look()
            if worker.index == self._replacing and worker.kill_at is None and worker.watch.served and not hung:
                self._replacing = None
            if hung and worker.kill_at is None and self._replacing in (None, worker.index):
                self._replacing = worker.index
                worker.kill_at = now + DUMP_SECONDS
                os.kill(worker.pid, DUMP_SIGNAL)
                found = worker
            elif worker.kill_at is not None and now >= worker.kill_at:
                os.kill(worker.pid, signal.SIGKILL)
        return found
