"""Looks for deliveries that are due: at all that is pending or, where that is much, at a part of the table at a time.

However many deliveries wait for an endpoint that does not answer, a look must not take longer: the others wait for it.
With each part the end of the table is looked at, where new deliveries come as a rule.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from relay.postgres.webhook_deliveries import Due, WebhookDeliveries

#: What is pending is counted before every thirtieth look at all, and after one that found as many as it may: a machine
#: without work asks little of Postgres.
_COUNTED_EACH: Final = 30


class WebhookLooks:
    """One look after the other. `deliveries`: what is looked at."""

    def __init__(self, deliveries: WebhookDeliveries) -> None:
        self._deliveries = deliveries
        #: The block with which the next part begins; None: the next look is at all.
        self._next: int | None = None
        #: Looks at all until what is pending is counted again.
        self._uncounted = 0

    @property
    def in_parts(self) -> bool:
        """Whether there are parts that have not been looked at since the last look at all."""
        return self._next is not None

    def look(self, most: int, but: Collection[str]) -> tuple[list[Due], bool]:
        """What is due, so many at most, and whether that is of all and not of a part. Raises PostgresUnavailable.

        `but`: webhooks that a look at a part leaves out.
        """
        if self._next is None and self._uncounted == 0:
            self._next = self._deliveries.backlog()
            self._uncounted = _COUNTED_EACH
        if self._next is None:
            due = self._deliveries.look(most)
            self._uncounted = self._uncounted - 1 if len(due) < most else 0
            return due, True
        due, self._next = self._deliveries.look_at_part(self._next, most, but)
        if self._next is None:
            self._uncounted = 0
        return due, False
