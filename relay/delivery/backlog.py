"""Rows that were seen to wait, and whose turn it is: the users' in a circle, each user's oldest first.

It holds some of what waits, never all: what finds no room stays in Postgres, and is seen again.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from relay.postgres.waiting import Waiting

#: Rows that are kept: those of one user, those of all, and those that are due within SOON seconds.
OF_ONE: Final = 500
OF_ALL: Final = 5000
#: A user that had as many as are kept gets newer ones only when it has fewer than so many.
ENOUGH: Final = 200
LATER: Final = 10_000
SOON: Final = 900.0
#: Users that make way together where there is no room.
_TAKEN_FROM: Final = 64


class Backlog:
    """Rows that may leave now, by user, and rows that may leave soon."""

    def __init__(self) -> None:
        #: Each user's rows as a heap of (created, id, row). The next user in turn comes first.
        self._users: OrderedDict[str | None, list[tuple[float, str, Waiting]]] = OrderedDict()
        #: Of users that have had all of their room: their newest row as (created, id). Newer ones are not taken in.
        self._newest: dict[str | None, tuple[float, str]] = {}
        self._known: set[str] = set()
        #: A heap of (when due by the monotonic clock, id, row).
        self._later: list[tuple[float, str, Waiting]] = []
        #: How often a user has come that had no row here that may leave.
        self.arrivals = 0

    def __len__(self) -> int:
        """Rows that may leave now."""
        return len(self._known) - len(self._later)

    def add(self, rows: Iterable[Waiting]) -> None:
        """Takes in what has been seen, as far as there is room for it, each row once."""
        now = time.monotonic()
        for row in rows:
            if row.email_id in self._known:
                continue
            if row.due_in <= 0:
                self._add(row)
            elif row.due_in <= SOON:
                self._known.add(row.email_id)
                heapq.heappush(self._later, (now + row.due_in, row.email_id, row))
        if len(self._later) > LATER:
            self._keep_soonest()

    def ripen(self) -> None:
        """Looks which of the rows that were to leave later are due now."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            row = heapq.heappop(self._later)[2]
            self._known.discard(row.email_id)
            self._add(row)

    def next_due(self) -> float:
        """Seconds until `ripen` has something to do; infinite if never."""
        return self._later[0][0] - time.monotonic() if self._later else math.inf

    def offers(self, busy: Mapping[str | None, int], share: int) -> bool:
        """Whether a user has a row that may leave and less than `share` on their way (`busy`, by user)."""
        return any(busy.get(user, 0) < share for user in self._users)

    def take(self, most: int, octets: int, busy: Mapping[str | None, int], share: int) -> list[Waiting]:
        """The next rows, of each user in turn, at most `most`, and more than one only if they have at most `octets`.

        Users with `share` rows on their way, these included, are passed over. What is handed out is forgotten.
        """
        taken: list[Waiting] = []
        counts = dict(busy)
        passed_over = 0
        while passed_over < len(self._users) and len(taken) < most:
            user, heap = next(iter(self._users.items()))
            if counts.get(user, 0) >= share:
                self._users.move_to_end(user)
                passed_over += 1
                continue
            row = heap[0][2]
            if taken and row.octets > octets:
                break
            heapq.heappop(heap)
            self._users.move_to_end(user)
            if not heap:
                del self._users[user]
                self._newest.pop(user, None)
            self._known.discard(row.email_id)
            counts[user] = counts.get(user, 0) + 1
            octets -= row.octets
            taken.append(row)
            passed_over = 0
        return taken

    def _add(self, row: Waiting) -> None:
        user = row.user_id
        heap = self._users.get(user)
        # perf: of a long backlog each look and each search see all rows again that there is no room for. To take them
        # in and to forget them again took 3 % of a worker's CPU: 0.8 µs for each, and 0.2 µs now.
        # python -m timeit -s 'from relay.delivery.backlog import Backlog, Waiting as W; b = Backlog()' \
        # -s 'r = [W(str(n), "u", n, 0, 0, 0, 0) for n in range(2000)]; b.add(r)' 'b.add(r[-200:])'
        newest = self._newest.get(user)
        if heap is not None and newest is not None:
            if len(heap) < ENOUGH:
                del self._newest[user]
            elif (row.created, row.email_id) > newest:
                return
        if heap is None:
            if len(self) >= OF_ALL and not self._make_room():
                return
            heap = self._users[user] = []
            self.arrivals += 1
        elif len(self) >= OF_ALL and len(heap) > 1:
            # No room: the user's newest makes way for an older one, or nothing changes.
            self._drop_newest(user, heap)
        self._known.add(row.email_id)
        heapq.heappush(heap, (row.created, row.email_id, row))
        if len(heap) > OF_ONE:
            self._drop_newest(user, heap)
        elif len(heap) == OF_ONE:
            self._newest[user] = max(heap)[:2]

    def _make_room(self) -> bool:
        """Takes rows from the users with the most, for a user that has none; whether there was one with two.

        From some of them at once: to find them takes a look at all users.
        """
        if len(self) == len(self._users):
            return False
        most = max(map(len, self._users.values()))
        large = ((user, heap) for user, heap in self._users.items() if len(heap) > most // 2)
        for user, heap in islice(large, _TAKEN_FROM):
            self._drop_newest(user, heap)
        return True

    def _drop_newest(self, user: str | None, heap: list[tuple[float, str, Waiting]]) -> None:
        """Forgets the newest half of the rows of a user, one at the least: it is not done for each row that comes."""
        kept = heapq.nsmallest(len(heap) // 2, heap)
        self._known.difference_update(email_id for _, email_id, _ in heap)
        self._known.update(email_id for _, email_id, _ in kept)
        heap[:] = kept  # sorted, so a heap
        self._newest[user] = kept[-1][:2]

    def _keep_soonest(self) -> None:
        kept = heapq.nsmallest(LATER // 2, self._later)
        self._known.difference_update(email_id for _, email_id, _ in self._later)
        self._known.update(email_id for _, email_id, _ in kept)
        self._later = kept
