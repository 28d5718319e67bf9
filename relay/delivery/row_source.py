"""Work that waits in Postgres: rows are found, claimed some at a time, and delivered, each user in turn.

    look   several times a second where there is no queue, or it is at work: the newest rows; when there are many, the
           oldest as well
    scan   every few seconds, with a queue too: rows that no job comes for (due retries and scheduled rows, rows whose
           job was lost), claims left behind, and what lies between the newest and the oldest

A job lies behind all that were there before it, maybe a hundred thousand of another user. So while a queue is at work,
rows that are older than LATE_SECONDS are taken here: each user in turn. Their jobs find them claimed.

The processes of a machine look and scan in turns, so that an idle machine costs Postgres four small queries a second,
however many processes it has. What one of them finds it claims at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import gevent
import gevent.lock
import structlog
from gevent.event import Event

from relay.core import metrics
from relay.core.errors import PostgresUnavailable
from relay.core.frozen import frozen
from relay.core.idleness import await_idle
from relay.core.supervision import Crew, Supervised, run_once, supervise
from relay.delivery.backlog import Backlog
from relay.delivery.passed_over import PassedOver
from relay.delivery.shares import Share, Shares
from relay.delivery.unclear import LeftBehind
from relay.postgres.driver import Row
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import Found, Waiting, WaitingRows, Walk

log = structlog.get_logger(__name__)

#: Rows that one look reads, and where those are all new to it; rows that are read at a time of a long backlog.
LOOK_ROWS: Final = 200
MANY_ROWS: Final = 2000
PIECE: Final = 500
#: Seconds between two pieces while there is work enough.
PIECE_SECONDS: Final = 0.05
#: The part of the time that looks may take of Postgres, and that scans of a long backlog may.
_LOOK_SHARE: Final = 0.05
_SCAN_SHARE: Final = 0.1
#: Seconds between two searches for rows of other users, at most, where a backlog is short and they bring none: what is
#: new is found by looks.
_OTHERS_SECONDS: Final = 2.0
#: A look that takes long reads what was made within the last so many seconds, and the rest less often.
_RECENT_SECONDS: Final = 60.0
#: Seconds after which a row is not left to its job: where the queue is at work, and where the job must have been lost.
LATE_SECONDS: Final = 1.0
#: The same while more mail waits than the provider's account takes: jobs are done at that pace then.
PACED_LATE_SECONDS: Final = 0.2
LOST_SECONDS: Final = 900.0
#: Rows of one claim: what it takes of Postgres grows with them.
CLAIM_ROWS: Final = 20
#: Octets of the rows of one claim, which are in memory at the same time, as far as there is more than one.
CLAIM_OCTETS: Final = 4_000_000


@frozen
class Turns:
    """Which of the processes of a machine this one is: `index` of `processes`, counted from 0."""

    index: int = 0
    processes: int = 1

    def next(self, seconds: float) -> float:
        """When this process is to do what one of them does every so many seconds; by the monotonic clock, which all
        processes of a machine share.
        """
        period, offset = seconds * self.processes, seconds * self.index
        return offset + (math.floor((time.monotonic() - offset) / period) + 1) * period


class RowSource:
    """Finds rows, claims them when there is a place, and has each claimed row delivered in a separate greenlet.

    `deliver(row)` gets what `Outgoing.claim` gave. `places`: taken before a claim, given back when the row is done
    with. `shares`: of the same places, by user. `queue_works`: whether the queue is at work; None: there is no queue,
    all rows are found here. `wait_for_leave` returns when work may be taken. `paced`: whether mail waits for permits.
    """

    #: Seconds between two looks, and two scans, of all processes of a machine together.
    look_seconds = 0.3
    scan_seconds = 12.0

    def __init__(
        self,
        outgoing: Outgoing,
        waiting: WaitingRows,
        deliver: Callable[[Row], None],
        places: gevent.lock.BoundedSemaphore,
        *,
        shares: Shares,
        left_behind: LeftBehind,
        queue_works: Callable[[], bool] | None,
        turns: Turns,
        wait_for_leave: Callable[[], None],
        paced: Callable[[], bool] = lambda: False,
    ) -> None:
        self._outgoing = outgoing
        self._waiting = waiting
        self._deliver = deliver
        self._places = places
        self._shares = shares
        self._queue_works = queue_works
        self._turns = turns
        self._wait_for_leave = wait_for_leave
        self._paced = paced
        self._backlog = Backlog()
        self._left_behind = left_behind
        self._passed_over = PassedOver("claim")
        self._crew = Crew("delivery_row")
        #: The rows that are on their way from here.
        self._on_the_way: dict[str, Share] = {}
        #: Something has changed for the loop that hands out.
        self._changed = Event()
        #: The loop that scans is to do something before its time: a whole scan (`_asked`), or to find more rows.
        self._hungry = Event()
        self._asked = False
        #: Whether more rows wait than one look reads, and which of them the last look saw.
        self._many = False
        self._last_seen: set[str] = set()
        self._next_look = turns.next(self.look_seconds)
        self._next_whole_look = 0.0
        self._next_search = 0.0
        #: When rows of other users are searched for next, and how often that has brought none.
        self._next_others = 0.0
        self._no_others = 0
        #: Whether the last claim got a row: what others hold locked is not asked for again and again.
        self._fruitful = True
        #: Whether the oldest rows are worth reading once more before the next look.
        self._refills = True

    def ask_for_scan(self) -> None:
        """Has the next scan begin now, not more often than once a second however often it is asked for."""
        self._asked = True
        self._hungry.set()

    def try_later(self, email_id: str, user_id: str | None) -> None:
        """A row is due, and can't be claimed now: it is tried again until it is claimed, or due no more."""
        email_id = email_id.lower()
        if email_id in self._on_the_way or email_id in self._passed_over:
            return
        pause = self._passed_over.note(email_id)
        # What it takes is not known: it is claimed by itself.
        row = Waiting(email_id, user_id, time.time(), due_in=pause, retried=True, age=0.0, octets=CLAIM_OCTETS)
        self._backlog.add([row])
        self._changed.set()

    def start(self) -> list[Supervised]:
        """Begins; the loops, to be stopped."""
        return [supervise("delivery_rows", self._hand_out), supervise("delivery_scan", self._scan)]

    # Handing out.

    def _hand_out(self) -> None:
        while True:
            self._wait_for_leave()
            self._changed.clear()
            try:
                if time.monotonic() >= self._next_look:
                    self._next_look = self._turns.next(self.look_seconds)
                    self._fruitful = self._refills = True
                    if self._looks():
                        self._look()
                    else:
                        self._many = False
                self._backlog.ripen()
                self._claim_some()
                if self._many and self._fruitful and self._places.counter and not self._is_ready():
                    if self._refills and len(self._backlog) < LOOK_ROWS:
                        self._refill()
                        if self._is_ready():
                            continue
                    self._hungry.set()
            except PostgresUnavailable:
                gevent.sleep(1.0)
            self._changed.wait(max(0.0, min(1.0, self._next_look - time.monotonic(), self._backlog.next_due())))

    def _looks(self) -> bool:
        """Whether rows are looked for that jobs may come for."""
        return self._queue_works is None or self._queue_works()

    def _is_ready(self) -> bool:
        return self._backlog.offers(self._shares.counts, self._shares.limit)

    def _look(self) -> None:
        """Reads the newest rows, and if those are many the oldest ones."""
        began = time.monotonic()
        whole = began >= self._next_whole_look
        rows = self._waiting.newest(LOOK_ROWS, seconds=None if whole else _RECENT_SECONDS)
        seen = {row.email_id for row in rows}
        many = len(rows) == LOOK_ROWS
        if many and self._last_seen.isdisjoint(seen):
            # More than one look reads have come since the last one: rows of other users may be among them.
            rows = self._waiting.newest(MANY_ROWS, seconds=None if whole else _RECENT_SECONDS)
        if whole:
            now = time.monotonic()
            self._next_whole_look = now + min(5.0, (now - began) / _LOOK_SHARE)
            self._many = many
        self._many = self._many or many
        self._last_seen = seen
        self._add(rows)
        if self._many and len(self._backlog) < LOOK_ROWS:
            self._refill()

    def _refill(self) -> None:
        """Reads the oldest rows. What brings no new ones is not done again before the next look."""
        before = len(self._backlog)
        self._add(self._waiting.oldest("queued", PIECE))
        self._refills = len(self._backlog) > before

    def _claim_some(self) -> None:
        """Claims what may leave now for the places that are free, until the next look."""
        while self._is_ready() and time.monotonic() < self._next_look:
            self._places.acquire()  # in one line with the jobs of the queue
            # perf: mails that end at about the same time are followed by one claim: 0.10 instead of 0.21 of a mail,
            # counted by `./scripts/bench --only delivery` (statements to Postgres).
            try:
                await_idle()
            except BaseException:  # the loop is ended: a drain would wait for this place
                self._places.release()
                raise
            most = min(CLAIM_ROWS, 1 + self._places.counter)
            rows = self._backlog.take(most, CLAIM_OCTETS, self._shares.counts, self._shares.limit)
            if not rows:
                self._places.release()
                return
            for _ in rows[1:]:
                self._places.acquire(blocking=False)
            for row in rows:
                self._on_the_way[row.email_id] = self._shares.of(row.user_id)
            # In a separate greenlet: the end of this loop must not be the end of a claim, nor of a mail half sent.
            run_once("delivery_claim", self._claim, rows).join()

    def _claim(self, rows: list[Waiting]) -> None:
        """Claims rows for which there are places."""
        left = {row.email_id: row for row in rows}
        refused: dict[str, str] = {}
        self._fruitful = False
        try:
            for claimed in self._outgoing.claim(list(left), skip_locked=True, refused=refused):
                self._fruitful = True
                email_id = str(claimed[0])
                left.pop(email_id, None)
                self._passed_over.forget(email_id)
                self._crew.run(self._row, claimed)
            if left:
                self._put_aside(left.values(), refused)
        except PostgresUnavailable:
            gevent.sleep(1.0)
        finally:
            for email_id in left:
                self._done(email_id)

    def _put_aside(self, rows: Collection[Waiting], refused: Mapping[str, str]) -> None:
        """Rows that were not claimed. The first time another worker may have been faster; then a row waits in the
        backlog, where no look brings it up, for as long as it is due. Raises PostgresUnavailable.
        """
        again = {row.email_id for row in rows if row.email_id in self._passed_over or row.email_id in refused}
        due = self._outgoing.due(again) if again else {}
        for row in rows:
            if row.email_id in again and row.email_id not in due:
                self._passed_over.forget(row.email_id)
                continue
            pause = self._passed_over.note(row.email_id, refused.get(row.email_id))
            if row.email_id in again:
                self._backlog.add([row._replace(due_in=pause)])

    def _row(self, claimed: Row) -> None:
        try:
            self._deliver(claimed)
        except PostgresUnavailable:
            metrics.DELIVERIES.labels("unrecorded").inc()
        finally:
            self._done(str(claimed[0]))

    def _done(self, email_id: str) -> None:
        self._on_the_way.pop(email_id).end()
        self._places.release()
        self._changed.set()

    def _add(self, rows: Iterable[Waiting]) -> None:
        """Takes in those of these rows that are found here: with a queue, those that no job comes for, or too late."""
        age = -math.inf
        if self._queue_works is not None:
            late = PACED_LATE_SECONDS if self._paced() else LATE_SECONDS
            age = late if self._looks() else LOST_SECONDS
        self._backlog.add(
            row
            for row in rows
            if row.email_id not in self._on_the_way
            and (row.retried or row.age >= age)
            and not self._passed_over.waits(row.email_id)
        )

    # Scanning.

    def _scan(self) -> None:
        next_scan = time.monotonic() + 1.0 + self._turns.index
        while True:
            self._hungry.wait(max(0.0, next_scan - time.monotonic()))
            self._hungry.clear()
            self._wait_for_leave()
            asked, self._asked = self._asked, False
            try:
                if asked or time.monotonic() >= next_scan:
                    next_scan = self._turns.next(self.scan_seconds)
                    self._scan_scheduled()
                    self._scan_claims()
                if self._queue_works is not None or self._many:
                    self._search()
            except PostgresUnavailable:
                gevent.sleep(1.0)
            gevent.sleep(1.0 if asked else 0.1)

    def _scan_scheduled(self) -> None:
        """Scheduled rows: those that are due, and those that will be soon."""
        self._each_piece(
            self._waiting.walk("scheduled"),
            lambda: self._waiting.oldest("scheduled", PIECE),
            # Whether or not there is a queue: a job of OpenSend's scheduler may come, or there is no scheduler.
            lambda rows: self._backlog.add(row for row in rows if row.email_id not in self._on_the_way),
        )

    def _scan_claims(self) -> None:
        """Claims that were left behind."""
        walk = self._waiting.walk_processing()
        self._each_piece(walk, lambda: self._waiting.processing(PIECE), self._left_behind.settle)
        self._left_behind.end_round()

    def _search(self) -> None:
        """All queued rows, not more often than a backlog of that length allows. Where it is for the rows of others,
        since all users that are known have their share, also not more often than it is worth.
        """
        began = time.monotonic()
        if began < (self._next_others if len(self._backlog) else self._next_search):
            return
        arrivals = self._backlog.arrivals
        walk = self._waiting.walk("queued")
        pause = self._each_piece(walk, lambda: self._waiting.oldest("queued", PIECE), self._add) / _SCAN_SHARE
        self._no_others = self._no_others + 1 if self._backlog.arrivals == arrivals else 0
        now = time.monotonic()
        self._next_search = now + pause
        self._next_others = now + max(pause, min(_OTHERS_SECONDS, pause * 2 ** min(self._no_others, 10)))

    def _each_piece(
        self, walk: Walk[Found], first: Callable[[], list[Found]], take: Callable[[list[Found]], None]
    ) -> float:
        """Has all rows of a status taken in, a piece at a time. Returns the seconds that it took to read them."""
        began = time.monotonic()
        rows = first()
        reading = time.monotonic() - began
        take(rows)
        self._changed.set()
        if len(rows) < PIECE:
            return reading
        try:
            ended = False
            while not ended:
                gevent.sleep(PIECE_SECONDS if len(self._backlog) else 0.0)
                began = time.monotonic()
                rows, ended = walk.read(PIECE)
                reading += time.monotonic() - began
                take(rows)
                self._changed.set()
        finally:
            walk.close()
        return reading
