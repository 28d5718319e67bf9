"""Mails of which it is not known whether the provider has them (docs/guarantees.md, section 9).

First an event is looked for that only the provider or a recipient of the mail can cause. Where there is none, the mail
is sent again or fails, as SMTP_RELAY_UNCLEAR says; what was made more than 24 hours ago is held until a command
releases it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, Literal

import structlog

from relay.core import metrics
from relay.core.errors import RedisUnavailable
from relay.core.gathered import Gathered
from relay.delivery.abandoned import Abandoned
from relay.delivery.passed_over import PassedOver
from relay.delivery.row import OutgoingEmail
from relay.postgres.left_rows import LeftRows
from relay.postgres.waiting import Processing
from relay.redis.claim_states import ClaimStates

log = structlog.get_logger(__name__)

#: What is older is not sent again by itself: its recipients don't expect it any more.
_RECENT: Final = timedelta(hours=24)
#: Seconds from one look for the truth about a held row to the next, and held rows that are remembered.
_HELD_SECONDS: Final = 3600.0
_MOST_HELD: Final = 10_000

Rule = Literal["again", "fail"]

for _result in ("found", "proven", "again", "failed", "held"):
    metrics.DELIVERY_UNCLEAR.labels(_result)


class Decision(Enum):
    """What becomes of a mail that the provider may have."""

    #: It has it, as an event says.
    PROVEN = "proven"
    #: It is sent, whatever the provider has.
    AGAIN = "again"
    FAILED = "failed"
    #: Nothing, until a command says what.
    HELD = "held"


class Unclear:
    """Decides on claimed mails that the provider may have."""

    def __init__(self, left: LeftRows, rule: Rule) -> None:
        self._left = left
        self._rule = rule
        # No index may help it: one statement at a time.
        self._truth: Gathered[str, bool] = Gathered("delivery_truth", self._known, seconds=0.0)

    def decide(self, email: OutgoingEmail, max_attempts: int, *, claimed: datetime) -> Decision:
        """What is to become of the mail; it is counted. Raises PostgresUnavailable.

        `claimed`: when, by Postgres's clock, which has made the row's time too: this machine's may be wrong.
        """
        if self._truth.ask(email.id):
            decision = Decision.PROVEN
        elif claimed - email.created_at >= _RECENT:
            decision = Decision.HELD
        elif self._rule == "fail" or email.retries >= max_attempts:
            decision = Decision.FAILED
        else:
            decision = Decision.AGAIN
        metrics.DELIVERY_UNCLEAR.labels(decision.value).inc()
        log.warning("delivery_unclear", email_id=email.id, decision=decision.value)
        return decision

    def _known(self, email_ids: Sequence[str]) -> list[bool]:
        known = self._left.known_to_provider(email_ids)
        return [email_id in known for email_id in email_ids]


class LeftBehind:
    """Deals with claims whose lease is over, of any worker. One a process."""

    def __init__(self, left: LeftRows, states: ClaimStates) -> None:
        self._left = left
        self._states = states
        self._abandoned = Abandoned()
        self._passed_over = PassedOver("give_back")
        #: Held rows, and when (monotonic) the truth about each is asked again.
        self._held: dict[str, float] = {}
        self._held_in_this_round: set[str] = set()

    def settle(self, rows: Sequence[Processing]) -> None:
        """Has a look at claimed rows. Raises PostgresUnavailable."""
        left_behind = self._without_claimed(self._abandoned.among(rows))
        recent = [row for row in left_behind if row.recent and not self._passed_over.waits(row.email_id)]
        # The next claim looks for an event.
        count = self._changed(recent, self._left.put_back)
        if count:
            metrics.DELIVERY_UNCLEAR.labels("found").inc(count)
            metrics.DELIVERIES.labels("abandoned").inc(count)
            log.warning("abandoned_claims", count=count)
        self._hold([row for row in left_behind if not row.recent])

    def _hold(self, rows: Sequence[Processing]) -> None:
        """Rows that are sent by no worker. Those that the provider has, as an event says, are `sent`."""
        now = time.monotonic()
        asked = [row for row in rows if self._held.get(row.email_id, 0.0) <= now]
        known = self._left.known_to_provider([row.email_id for row in asked]) if asked else set()
        proven = [row for row in asked if row.email_id in known]
        if proven:
            count = self._changed(proven, self._left.settle)
            metrics.DELIVERY_UNCLEAR.labels("found").inc(count)
            metrics.DELIVERY_UNCLEAR.labels("proven").inc(count)
        for row in asked:
            if row.email_id not in known and (row.email_id in self._held or len(self._held) < _MOST_HELD):
                self._held[row.email_id] = now + _HELD_SECONDS
        self._held_in_this_round.update(row.email_id for row in rows if row.email_id in self._held)

    def _changed(self, rows: Sequence[Processing], change: Callable[..., set[str]]) -> int:
        """Changes rows; how many have changed. The others are tried again."""
        refused: dict[str, str] = {}
        changed = change(rows, refused=refused) if rows else set()
        for row in rows:
            if row.email_id in changed:
                self._passed_over.forget(row.email_id)
            else:
                self._passed_over.note(row.email_id, refused.get(row.email_id))
        return len(changed)

    def end_round(self) -> None:
        """All rows have been looked at."""
        self._abandoned.end_round()
        for email_id in self._held.keys() - self._held_in_this_round:
            del self._held[email_id]
        if len(self._held) != metrics.DELIVERY_HELD.value:
            metrics.DELIVERY_HELD.value = len(self._held)
            log.warning("delivery_held", count=len(self._held))
        self._held_in_this_round.clear()

    def _without_claimed(self, rows: list[Processing]) -> list[Processing]:
        """Those that no process works on, as far as Redis says."""
        marks = {row.email_id: row.mark for row in rows if row.ours}
        if not marks:
            return rows
        try:
            claimed = self._states.held(marks)
        except RedisUnavailable:
            return rows
        return [row for row in rows if row.email_id not in claimed]
