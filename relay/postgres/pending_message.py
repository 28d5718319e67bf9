"""A message on its way to Postgres: what is sent, by when, and which greenlet waits for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from typing import Final, Self

from relay.core.handoff import Handoff
from relay.core.records import EmailRow
from relay.postgres.insert_emails import encode, encode_further, encode_statement

#: From this size on (octets) a message takes a separate transaction: it would hold up the others of a statement.
_ALONE: Final = 1_000_000
#: From this size on (octets) it gets more time, on a connection that is closed afterwards: libpq never gives back the
#: memory that it sent a large statement from.
_LARGE: Final = 4_000_000
#: How slowly a large message may go through, and be copied for its further rows (octets a second). Measured on a busy
#: machine with 36 MB: 9,000,000 and 60,000,000.
_LARGE_RATE: Final = 4_000_000
_COPY_RATE: Final = 16_000_000


class PendingMessage:
    """One message on its way: its rows as JSON, and the greenlet that waits for them."""

    __slots__ = (
        "alone",
        "deadline",
        "done",
        "further_rows",
        "ids",
        "key",
        "large",
        "payload",
        "recipients",
        "statement",
        "user_id",
    )

    def __init__(self, rows: Sequence[EmailRow], recipients: Collection[str], deadline: float) -> None:
        """`deadline` is a moment of time.monotonic(); a large message gets more time, in proportion to its size."""
        first = rows[0]
        further = len(rows) - 1
        self.ids = [row.id for row in rows]
        self.user_id = first.user_id
        self.key = first.idempotency_key
        self.recipients = recipients
        weight = len(first.html) + len(first.text)
        if first.attachments:
            weight += sum([len(attachment.content) for attachment in first.attachments])
        #: Whether the payload is a whole statement. There is one copy of tens of megabytes, then, for both tries.
        self.statement = weight >= _ALONE
        #: The first row.
        self.payload = (encode_statement if self.statement else encode)(first, recipients)
        #: The others, without what they share with the first one.
        self.further_rows = encode_further(rows[1:]) if further else b""
        size = len(self.payload)
        #: Whether it takes a separate transaction: several rows come together or not at all.
        self.alone = self.statement or further > 0 or size >= _ALONE
        #: Whether the message deserves care for its size.
        self.large = self.alone and size >= _LARGE
        self.deadline = deadline
        if self.alone:
            self.deadline += (size / _LARGE_RATE if self.large else 0.0) + size * further / _COPY_RATE
        #: Settled with what became of it; None: it has to try again in a separate transaction.
        self.done: Handoff[bool | None] = Handoff()

    def again(self) -> Self:
        """The same message, to be committed once more."""
        twin = copy(self)
        twin.done = Handoff()
        return twin

    @property
    def order(self) -> tuple[str, str]:
        """Two statements that insert the same idempotency keys in one order can't wait for each other in a ring."""
        return (self.user_id, self.key or "")
