"""How Redis holds who is suppressed: entries for single addresses, and whole lists (contract sections 3 and 4).

A *list* is complete: an address that is not on it was not suppressed when the list was read from Postgres. It lies in
buckets, sets of 32-bit numbers cut from a digest of the address, which Redis keeps as sorted arrays of 4 octets each.
So short a number can belong to two addresses: being on the list only means "ask Postgres", not being on it is certain.
Both ways of getting old are harmless therefore. An address added since is caught by the guard in the INSERT, one that
was removed by the question to Postgres.

Each bucket holds the number 0 besides, so that one which Redis evicted is told from one that never had the address.
A list becomes visible, and replaces the one before, by a single SET of its marker `<generation>:<number of buckets>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from relay.redis_link import Command

#: Key prefixes; the user id comes last, so that no two users share a key whatever is in it.
ENTRY_PREFIX: Final = b"smtp-relay:suppression:"
MARKER_PREFIX: Final = b"smtp-relay:suppressions:"
BUCKET_PREFIX: Final = b"smtp-relay:suppressed:"

#: What an entry holds for an address that is not suppressed; else it holds the reason.
CLEAR: Final = b"-"
#: How long what was learned about a single address is believed, in seconds.
ENTRY_SECONDS: Final = 60
#: Addresses a bucket, on average. Redis keeps up to 512 numbers as an array; this leaves sixteen standard deviations.
BUCKET_SIZE: Final = 256

#: Octets of an address's digest, and how many of them a list uses.
DIGEST_SIZE: Final = 16
LIST_DIGEST_SIZE: Final = 8


def digest_prefix(user_id: str) -> bytes:
    """What goes before the address in the digest: no two users' addresses can be mistaken for one another."""
    user = user_id.encode("utf-8", "surrogatepass")
    return len(user).to_bytes(4, "big") + user


def digest(prefix: bytes, email: str) -> bytes:
    """16 octets for an address in comparison form. The first eight: its number in a bucket, and which bucket."""
    return blake2b(prefix + email.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE).digest()


def entry_key(digest_of_address: bytes) -> bytes:
    """The key of what is known about one address."""
    return ENTRY_PREFIX + digest_of_address


def marker_key(user_id: str) -> bytes:
    """The key that says that a user's list is complete, and where it is."""
    return MARKER_PREFIX + user_id.encode("utf-8", "surrogatepass")


def entry_commands(user_id: str, states: Sequence[tuple[str, str | None]]) -> list[Command]:
    """Remembers addresses (comparison form) with the reason, or None for one that is not suppressed."""
    prefix = digest_prefix(user_id)
    return [
        ("SET", entry_key(digest(prefix, email)), reason.encode() if reason else CLEAR, "EX", ENTRY_SECONDS)
        for email, reason in states
    ]
