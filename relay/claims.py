"""How a message that comes again, whole or split over transactions, is known to be the same one."""

from __future__ import annotations

import hashlib
from typing import Self

from relay.values import frozen


@frozen
class Holder:
    """Who has claimed a recipient already: the row that the recipient is in, or will be, and for how long.

    `age_ms` is by Redis's clock alone, as of its answer: the clocks of two machines need not agree.
    """

    email_id: str
    age_ms: int


@frozen
class Claim:
    """One transaction's claim on the recipients of one message; `key` is what all transactions of that message share.

    `email_id` is the id of the (first) row that the claimant means to store, `seconds` how long a claim holds.
    """

    key: bytes
    user_id: str
    email_id: str
    seconds: int

    @classmethod
    def of(cls, user_id: str, message_id: str, content_digest: bytes, email_id: str, seconds: int) -> Self:
        """The claim for a message. Two users' messages never share a key: each part is hashed with its length."""
        user, message = user_id.encode("utf-8", "surrogatepass"), message_id.encode("utf-8", "surrogatepass")
        parts = len(user).to_bytes(8, "big"), user, len(message).to_bytes(8, "big"), message, content_digest
        return cls(hashlib.sha256(b"".join(parts)).digest(), user_id, email_id, seconds)
