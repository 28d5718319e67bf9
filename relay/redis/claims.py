"""How a message that comes again, whole or split over transactions, is known to be the same one."""

from __future__ import annotations

import hashlib

from relay.core.frozen import frozen


@frozen
class Holder:
    """Who has claimed a recipient already: the row that the recipient is in, or will be, and for how long.

    `age_ms` is by Redis's clock alone, as of its answer: the clocks of two machines need not agree.
    """

    email_id: str
    age_ms: int


@frozen
class Claim:
    """One transaction's claim on the recipients of one message; `key` (from `key_of`) is what all of them share.

    `email_id` is the id of the (first) row that the claimant means to store, `seconds` how long a claim holds.
    """

    key: bytes
    user_id: str
    email_id: str
    seconds: int


def key_of(user_id: str, message_id: str, content: bytes) -> bytes:
    """What the claims for one user's message with this id and these octets share, and those for no other.

    The texts are hashed with their lengths, so that none can pass for a part of its neighbour.
    """
    user, message = user_id.encode("utf-8", "surrogatepass"), message_id.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"%d %d %b%b" % (len(user), len(message), user, message))
    digest.update(content)
    return digest.digest()
