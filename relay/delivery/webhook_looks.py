"""Looks for deliveries that are due: at all that is pending or, where that is much, at a part of the table at a time.

However many deliveries wait for an endpoint that does not answer, a look must not take longer: the others wait for it.
With each part the end of the table is looked at, where new deliveries come as a rule.
"""

from __future__ import annotations

from collections.abc import Collection

from relay.postgres.webhook_deliveries import Due, WebhookDeliveries


class WebhookLooks:
    """One look after the other. `deliveries`: what is looked at."""

    def __init__(self, deliveries: WebhookDeliveries) -> None:
        self._deliveries = deliveries
        #: The block with which the next part begins; None: the next look is at all.
        self._next: int | None = None

    @property
    def in_parts(self) -> bool:
        """Whether there are parts that have not been looked at since the last look at all."""
        return self._next is not None

    def look(self, most: int, but: Collection[str]) -> tuple[list[Due], bool]:
        """What is due, so many at most, and whether that is of all and not of a part. Raises PostgresUnavailable.

        `but`: webhooks that a look at a part leaves out.
        """
        if self._next is None:
            self._next = self._deliveries.backlog()
        if self._next is None:
            return self._deliveries.look(most), True
        due, self._next = self._deliveries.look_at_part(self._next, most, but)
        return due, False
