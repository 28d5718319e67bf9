"""Claims without a worker: the one that made them has ended (contract section 6).

A claim of ours says when it was made. One of OpenSend's worker says nothing, not even whose it is: it is taken for left
behind when the row has been the same version for as long as a lease, for as far as this process has seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from relay.postgres.leases import LEASE
from relay.postgres.waiting import Processing

#: Claims without a time that are remembered. Others are taken up when these are gone.
MOST: Final = 10_000


class Abandoned:
    """What was seen of claims that carry no time of ours."""

    def __init__(self) -> None:
        #: Version and the time (monotonic) at which it was first seen, by row.
        self._seen: dict[str, tuple[str, float]] = {}
        self._in_this_round: set[str] = set()

    def among(self, rows: Iterable[Processing]) -> list[Processing]:
        """Those of these rows whose claim has been left behind."""
        now = time.monotonic()
        left_behind = []
        for row in rows:
            if row.ours:
                if row.expired:
                    left_behind.append(row)
                continue
            version, since = self._seen.get(row.email_id, ("", now))
            if version != row.version:
                if len(self._seen) < MOST or row.email_id in self._seen:
                    self._seen[row.email_id] = row.version, now
            elif now - since >= LEASE.total_seconds():
                left_behind.append(row)
            if row.email_id in self._seen:
                self._in_this_round.add(row.email_id)
        return left_behind

    def end_round(self) -> None:
        """All rows have been looked at: what was not among them is claimed no more."""
        for email_id in self._seen.keys() - self._in_this_round:
            del self._seen[email_id]
        self._in_this_round.clear()
