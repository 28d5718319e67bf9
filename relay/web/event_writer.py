"""How events reach Postgres: whatever waits in one statement; and where they stay while Postgres is away.

In order: Postgres; Redis; the memory of this process, bounded. What is kept is written when Postgres is back, by
whatever process finds it first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Generic, TypeVar

import gevent
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.errors import PostgresUnavailable
from relay.core.handoff import Handoff
from relay.core.supervision import Supervised, supervise
from relay.postgres.database import Rejected
from relay.redis.kept_events import KeptEvents

log = structlog.get_logger(__name__)

_R = TypeVar("_R")

#: Events in memory at most. What comes beyond that is refused, or lost and counted where it can't be refused.
MOST_WAITING: Final = 10_000
#: Events, and octets of them, of one statement.
_MOST_ROWS: Final = 200
_MOST_OCTETS: Final = 2_000_000
#: After a failure Postgres is left alone for so long, while events go to Redis at once; seconds.
_PAUSE: Final = 1.0
#: How often it is asked whether anything is kept, and how many events are taken up at a time.
_LOOK_SECONDS: Final = 2.0
_TAKEN_UP: Final = 50
#: SQLSTATE classes of what is wrong with the event itself: data, constraints, limits of the program. Anything else may
#: be mended.
_OF_THE_EVENT: Final = ("22", "23", "54")


class Fate(Enum):
    """What became of an event that was not written."""

    #: In Redis.
    KEPT = "kept"
    #: Nowhere: there was no room, or the process ended.
    LOST = "lost"
    #: The database will never take it.
    UNSTORABLE = "unstorable"


class _WaitingEvent(Generic[_R]):
    __slots__ = ("done", "event")

    def __init__(self, event: bytes) -> None:
        self.event = event
        self.done: Handoff[_R | Fate] = Handoff()


class EventWriter(Generic[_R]):
    """Writes events of one kind."""

    def __init__(self, name: str, write: Callable[[Sequence[bytes]], Sequence[_R]], kept: KeptEvents) -> None:
        """`name`: a word of ours, for log and metrics. `write`: writes all in one statement, and says what became of
        each; raises PostgresUnavailable or Rejected, and is harmless to repeat."""
        self._name = name
        self._write = write
        self._kept = kept
        self._waiting: deque[_WaitingEvent[_R]] = deque()
        self._wake = Event()
        self._away_until = 0.0
        self._away = False
        self._closing = False
        self._in_hand: list[_WaitingEvent[_R]] = []
        self._greenlets: list[Supervised] = []
        self._results = {fate: metrics.EVENTS_NOT_WRITTEN.labels(name, fate.value) for fate in Fate}
        self._gauge = metrics.EVENTS_KEPT.labels(name)

    def start(self) -> None:
        """Begins to write. After any fork."""
        self._greenlets = [
            supervise(f"{self._name}-writer", self._run, longest_pause=1.0),
            supervise(f"{self._name}-kept", self._take_up, longest_pause=10.0),
        ]

    @property
    def away(self) -> bool:
        """Whether Postgres did not answer the last time: no request should wait for it."""
        return self._away

    def put(self, event: bytes) -> Handoff[_R | Fate]:
        """Takes an event; what became of it, for one greenlet to wait for, or not."""
        waiting: _WaitingEvent[_R] = _WaitingEvent(event)
        if self._closing or len(self._waiting) >= MOST_WAITING:
            self._settle([waiting], Fate.LOST)
        else:
            self._waiting.append(waiting)
            self._wake.set()
        return waiting.done

    def close(self, seconds: float) -> None:
        """Writes or keeps what waits, as far as that can be done in so many seconds; no more is taken."""
        self._closing = True
        self._wake.set()
        with gevent.Timeout(seconds, False):  # type: ignore[arg-type]  # gevent: no exception
            while self._waiting or self._in_hand:
                gevent.sleep(0.01)
        for greenlet in self._greenlets:
            greenlet.stop()
        # What could not be kept is in both.
        left = list(dict.fromkeys((*self._in_hand, *self._waiting)))
        self._in_hand, self._waiting = [], deque()
        if left and self._kept.keep([waiting.event for waiting in left]):
            self._settle(left, Fate.KEPT)
        else:
            self._settle(left, Fate.LOST)

    def _run(self) -> None:
        if self._in_hand:  # an unforeseen error ended the greenlet before this one; to write twice is harmless
            self._waiting.extendleft(reversed(self._in_hand))
            self._in_hand = []
        while True:
            if not self._waiting:
                self._wake.clear()
                self._wake.wait()
                continue
            self._in_hand = self._take()
            if time.monotonic() < self._away_until:
                self._keep(self._in_hand)
            else:
                self._write_all(self._in_hand)
            self._in_hand = []

    def _take(self) -> list[_WaitingEvent[_R]]:
        batch: list[_WaitingEvent[_R]] = []
        size = 0
        while self._waiting and len(batch) < _MOST_ROWS:
            size += len(self._waiting[0].event)
            if batch and size > _MOST_OCTETS:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _write_all(self, batch: list[_WaitingEvent[_R]]) -> None:
        try:
            results = self._write([waiting.event for waiting in batch])
        except PostgresUnavailable:
            self._lost_postgres()
            self._keep(batch)
        except Exception as error:  # noqa: BLE001 - a writer that one event ends takes all others with it
            if len(batch) > 1:  # one of them is the cause, which halving finds
                half = len(batch) // 2
                self._write_all(batch[:half])
                self._write_all(batch[half:])
            elif self._is_of_the_event(error):
                self._settle(batch, Fate.UNSTORABLE)
            else:
                self._lost_postgres()
                self._keep(batch)
        else:
            if self._away:
                self._away = False
                log.info("events_written_again", kind=self._name)
            for waiting, result in zip(batch, results, strict=True):
                waiting.done.set(result)

    def _is_of_the_event(self, error: Exception) -> bool:
        """Whether an error says that this event can't be written, now or later."""
        if not isinstance(error, Rejected):
            log.error("event_failed", kind=self._name, exc_info=error)
            return True
        of_the_event = error.sqlstate.startswith(_OF_THE_EVENT)
        log.error("event_refused", kind=self._name, sqlstate=error.sqlstate, for_good=of_the_event)
        return of_the_event

    def _lost_postgres(self) -> None:
        self._away_until = time.monotonic() + _PAUSE
        if not self._away:
            self._away = True
            log.warning("events_not_written", kind=self._name)

    def _keep(self, batch: list[_WaitingEvent[_R]]) -> None:
        """In Redis; else in memory, in front of all that came later."""
        if self._kept.keep([waiting.event for waiting in batch]):
            self._settle(batch, Fate.KEPT)
            return
        fit = batch[: max(0, MOST_WAITING - len(self._waiting))]
        self._settle(batch[len(fit) :], Fate.LOST)
        self._waiting.extendleft(reversed(fit))
        gevent.sleep(_PAUSE / 10)

    def _settle(self, batch: Sequence[_WaitingEvent[_R]], fate: Fate) -> None:
        if not batch:
            return
        self._results[fate].inc(len(batch))
        if fate is Fate.LOST:
            log.error("events_lost", kind=self._name, events=len(batch))
        for waiting in batch:
            waiting.done.set(fate)

    def _take_up(self) -> None:
        """Writes what is kept, again and again."""
        while True:
            gevent.sleep(_LOOK_SECONDS)
            while time.monotonic() >= self._away_until and self._write_kept():
                continue
            self._gauge.value = len(self._kept)

    def _write_kept(self) -> bool:
        """Whether there may be more."""
        events = self._kept.first(_TAKEN_UP)
        if not events:
            return False
        try:
            self._write(events)
        except PostgresUnavailable:
            self._lost_postgres()
            return False
        except Exception:  # noqa: BLE001 - as above
            return self._write_kept_singly(events)
        log.info("kept_events_written", kind=self._name, events=len(events))
        self._kept.remove(events)
        return True

    def _write_kept_singly(self, events: Sequence[bytes]) -> bool:
        for event in events:
            try:
                self._write([event])
            except PostgresUnavailable:
                self._lost_postgres()
                return False
            except Exception as error:  # noqa: BLE001 - as above
                if not self._is_of_the_event(error):
                    self._lost_postgres()
                    return False
                self._results[Fate.UNSTORABLE].inc()
            self._kept.remove([event])
        return True
