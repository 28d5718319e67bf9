"""Rows that Postgres does not let be changed: locked for long, refused, or passed over by a trigger or a policy.

Each is tried again, less often each time, and is said once. None of them takes a place while it waits.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

import structlog

from relay.core import metrics

log = structlog.get_logger(__name__)

#: Seconds until a row is tried again: after the first time, and at most.
_FIRST_SECONDS: Final = 0.5
_LONGEST_SECONDS: Final = 60.0
#: Tries after which a row is said that is not refused: it is then 15 s since the first.
_SAID_AFTER: Final = 6
#: Rows that are remembered, and the seconds after which one is forgotten that is not tried any more.
_MOST: Final = 10_000
_KEPT_SECONDS: Final = 900.0
#: Seconds between two log lines, each for all rows since the one before.
_LOG_SECONDS: Final = 60.0
_NEVER: Final = (0, 0.0, False)


class PassedOver:
    """How often each was tried, and when it is tried again. `step`: what is tried, a word for the log."""

    def __init__(self, step: str) -> None:
        self._step = step
        #: Tries, the time (monotonic) of the next, and whether it is said; the row that was tried last is the last.
        self._rows: OrderedDict[str, tuple[int, float, bool]] = OrderedDict()
        #: Rows to be said, with the cause.
        self._unsaid: list[tuple[str, str]] = []
        self._next_line = 0.0

    def __contains__(self, email_id: str) -> bool:
        return email_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def waits(self, email_id: str) -> bool:
        """Whether it is too early to try this row."""
        _, at, _ = self._rows.get(email_id, _NEVER)
        return time.monotonic() < at

    def note(self, email_id: str, cause: str | None = None) -> float:
        """A row was tried, and has not changed. Returns the seconds until it is tried again.

        `cause`: why it is refused, an SQLSTATE or the name of an error; None: it is locked or passed over, or another
        worker was faster.
        """
        now = time.monotonic()
        tries, _, said = self._rows.pop(email_id, _NEVER)
        pause = min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0 ** min(tries, 30))
        tries += 1
        say = not said and (tries >= _SAID_AFTER or cause is not None)
        self._rows[email_id] = tries, now + pause, said or say
        while len(self._rows) > _MOST or next(iter(self._rows.values()))[1] < now - _KEPT_SECONDS:
            self._rows.popitem(last=False)
        if say:
            metrics.DELIVERIES.labels("passed_over").inc()
            self._unsaid.append((email_id, cause or "it is locked, or a trigger or a policy passes over it"))
        if self._unsaid and now >= self._next_line:
            self._next_line = now + _LOG_SECONDS
            named, why = self._unsaid[0]
            log.error("rows_passed_over", step=self._step, count=len(self._unsaid), email_id=named, cause=why)
            self._unsaid.clear()
        return pause

    def forget(self, email_id: str) -> None:
        """The row has changed, or need not."""
        self._rows.pop(email_id, None)
