"""Claims as leases: which rows this process has made `processing`, by which mark, and since when.

The mark of a claim is the time that it wrote into `provider_last_attempted_at`. Whatever gives a row back names it, so
that a process which stood still for longer than its lease takes nothing away from the one that has the row by now.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from datetime import datetime, timedelta
from typing import Final

from relay.core.frozen import frozen

#: A claim that is older has been left behind by a worker that ended: it is given up, and the row is sent by another.
LEASE: Final = timedelta(minutes=15)
#: Seconds from a claim within which the provider must have been called. What may follow ends within the lease: the
#: wait for credentials and for a further permit (15 s and 10 s), the call itself (60 s, 116 s for 40 MB; with a smart
#: host 145 s for all of that), and the time for which it is tried to record what it said (555 s, and 6 s for the last
#: try).
HANDOVER_SECONDS: Final = 180.0
#: Seconds from a claim within which the first octet must leave: what that may wait for, a connection above all, takes
#: 85 s at most. A process, or a machine, that stood still in between finds it out.
LEAVING_SECONDS: Final = 270.0
#: Claims that nothing was recorded of are of no use when they are older than so many leases.
_KEPT_LEASES: Final = 2


@frozen
class _Lease:
    mark: datetime
    #: When the statement that claimed the row was sent, by both clocks: the first stands still with the machine, and
    #: the second may be set.
    monotonic: float
    wall: float

    def age(self) -> float:
        """Seconds, at least."""
        return max(time.monotonic() - self.monotonic, time.time() - self.wall)


class Leases:
    """The claims of this process."""

    def __init__(self) -> None:
        self._leases: OrderedDict[str, _Lease] = OrderedDict()

    def note(self, email_id: str, mark: datetime, began: tuple[float, float]) -> None:
        """A row has been claimed. `began`: `clocks()` before the statement was sent."""
        self._leases.pop(email_id, None)
        monotonic, wall = began
        self._leases[email_id] = _Lease(mark, monotonic=monotonic, wall=wall)
        while next(iter(self._leases.values())).age() > _KEPT_LEASES * LEASE.total_seconds():
            self._leases.popitem(last=False)

    def forget(self, email_id: str) -> None:
        """The row has been given back, or what became of it is recorded."""
        self._leases.pop(email_id, None)

    def mark(self, email_id: str) -> datetime | None:
        """What the claim wrote; None where there is no claim of this process."""
        lease = self._leases.get(email_id)
        return None if lease is None else lease.mark

    def allows_handover(self, email_id: str) -> bool:
        """Whether the provider may still be called: later another worker may have the row before this one is done."""
        lease = self._leases.get(email_id)
        return lease is not None and lease.age() < HANDOVER_SECONDS

    def allows_leaving(self, email_id: str) -> bool:
        """The same right before the first octet leaves."""
        lease = self._leases.get(email_id)
        return lease is not None and lease.age() < LEAVING_SECONDS

    def __len__(self) -> int:
        return len(self._leases)


def clocks() -> tuple[float, float]:
    """The time by both clocks."""
    return time.monotonic(), time.time()
