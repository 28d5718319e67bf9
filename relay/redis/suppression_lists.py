"""How Redis holds suppressions: entries for single addresses, and whole lists (contract sections 3 and 4).

A *list* is complete: an address that is not on it was not suppressed when the list was read from Postgres. It lies in
buckets, sets of 32-bit numbers cut from a digest of the address, which Redis keeps as sorted arrays of 4 octets each.
So short a number can belong to two addresses: being on the list only means "ask Postgres", not being on it is certain.
Both ways of getting old are harmless therefore. An address added since is caught by the guard in the INSERT, one that
was removed by the question to Postgres.

Each bucket holds the number 0 besides, so that one which Redis evicted differs from one that never had the address.
A list becomes visible, and replaces the one before, by a single SET of its marker `<generation>:<number of buckets>`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Final, Protocol

from relay.core.memo import memoised
from relay.redis.keys import SUPPRESSION_BUCKET_PREFIX, SUPPRESSION_ENTRY_PREFIX, SUPPRESSION_MARKER_PREFIX
from relay.redis.link import Script
from relay.redis.protocol import Command, RedisReply

#: What an entry holds for an address that is not suppressed; else it holds the reason.
CLEAR: Final = b"-"
#: What the screening script says instead of a reason. A suppression whose reason reads so is not remembered.
_STATES: Final = ("", "-", "?", "+")
#: How long what was learned about a single address is used, in seconds.
ENTRY_SECONDS: Final = 60
#: Addresses a bucket, on average. Redis keeps up to 512 numbers as an array; this leaves sixteen standard deviations.
BUCKET_SIZE: Final = 256

#: Octets of an address's digest, and how many of them a list uses.
DIGEST_SIZE: Final = 16
LIST_DIGEST_SIZE: Final = 8


@memoised(entries=1024, octets=400)
def digest_prefix(user_id: str) -> bytes:
    """What goes before the address in the digest: no two users' addresses can be mistaken for one another."""
    user = user_id.encode("utf-8", "surrogatepass")
    return len(user).to_bytes(4, "big") + user


def digest(prefix: bytes, email: str) -> bytes:
    """16 octets for an address in comparison form. The first eight: its number in a bucket, and which bucket."""
    return blake2b(prefix + email.encode("utf-8", "surrogatepass"), digest_size=DIGEST_SIZE).digest()


def entry_key(digest_of_address: bytes) -> bytes:
    """The key of what is known about one address."""
    return SUPPRESSION_ENTRY_PREFIX + digest_of_address


@memoised(entries=1024, octets=400)
def marker_key(user_id: str) -> bytes:
    """The key that says that a user's list is complete, and where it is."""
    return SUPPRESSION_MARKER_PREFIX + user_id.encode("utf-8", "surrogatepass")


def entry_commands(user_id: str, states: Sequence[tuple[str, str | None]]) -> list[Command]:
    """Remembers addresses (comparison form) with the reason, or None for one that is not suppressed."""
    prefix = digest_prefix(user_id)
    return [
        ("SET", entry_key(digest(prefix, email)), reason.encode() if reason else CLEAR, "EX", ENTRY_SECONDS)
        for email, reason in states
        if reason not in _STATES
    ]


# Writing a list.

_BUILD: Final = Script(
    """
-- ARGV: prefix of buckets, user, generation, first bucket, last bucket, seconds. Makes empty buckets that expire.
for bucket = tonumber(ARGV[4]), tonumber(ARGV[5]) do
  local key = ARGV[1] .. ARGV[3] .. ':' .. bucket .. ':' .. ARGV[2]
  redis.call('SADD', key, '0')
  redis.call('EXPIRE', key, ARGV[6])
end
"""
)

_ADD: Final = Script(
    """
-- ARGV: prefix of buckets, user, generation, number of buckets, digests of 8 octets in one string
local digests, buckets = ARGV[5], tonumber(ARGV[4])
local head, tail = ARGV[1] .. ARGV[3] .. ':', ':' .. ARGV[2]
for position = 1, #digests, 8 do
  local number, bucket = struct.unpack('>i4I4', digests, position)
  redis.call('SADD', head .. (bucket % buckets) .. tail, string.format('%d', number))
end
"""
)

_DROP: Final = Script(
    """
-- ARGV: prefix of buckets, user, generation, first bucket, last bucket
for bucket = tonumber(ARGV[4]), tonumber(ARGV[5]) do
  redis.call('UNLINK', ARGV[1] .. ARGV[3] .. ':' .. bucket .. ':' .. ARGV[2])
end
"""
)

# A short list is written by one script, so that many users with few entries go through in few round trips.
_WRITE_SHORT: Final = Script(
    """
-- KEYS: marker. ARGV: prefix of buckets, user, generation, seconds, digests of 8 octets in one string
local key = ARGV[1] .. ARGV[3] .. ':0:' .. ARGV[2]
redis.call('SADD', key, '0')
redis.call('EXPIRE', key, ARGV[4] + 60)
for position = 1, #ARGV[5], 8 do
  redis.call('SADD', key, string.format('%d', struct.unpack('>i4', ARGV[5], position)))
end
local replaced = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[3] .. ':1', 'EX', ARGV[4])
return replaced
"""
)

SCRIPTS: Final = (_BUILD, _ADD, _DROP, _WRITE_SHORT)

#: How long half a list outlives the process that was killed while it wrote it, in seconds.
_UNFINISHED_SECONDS: Final = 3600
#: Digests a command, and buckets a command: about a millisecond of Redis's time.
_CHUNK: Final = 1000


class Outbox(Protocol):
    """Takes commands, sends them in their order, and fails loudly when one of them does."""

    def put(self, command: Command, then: Callable[[RedisReply], None] | None = None) -> None:
        """`then` gets the reply."""

    def settle(self) -> None:
        """Returns when all that was put has been carried out."""


class ListWriter:
    """Writes one user's list beside the one that is there, which `finish` replaces in one step."""

    def __init__(self, outbox: Outbox, user_id: str, size: int, seconds: int) -> None:
        """`size`: how many addresses there will be. `seconds`: how long the list is to be used."""
        self._outbox = outbox
        self._marker = marker_key(user_id)
        self._prefix = digest_prefix(user_id)
        self._user = user_id.encode("utf-8", "surrogatepass")
        self._seconds = seconds
        self._generation = secrets.token_hex(6)
        self._buckets = max(1, -(-size // BUCKET_SIZE))
        self._short: list[bytes] = []
        if self._buckets > 1:
            self._build(_UNFINISHED_SECONDS)

    def add(self, emails: Sequence[str]) -> None:
        """Addresses in comparison form."""
        prefix, size = self._prefix, DIGEST_SIZE
        digests = [
            blake2b(prefix + email.encode("utf-8", "surrogatepass"), digest_size=size).digest()[:LIST_DIGEST_SIZE]
            for email in emails
        ]
        if self._buckets == 1:
            self._short += digests
            return
        for start in range(0, len(digests), _CHUNK):
            chunk = b"".join(digests[start : start + _CHUNK])
            arguments = (SUPPRESSION_BUCKET_PREFIX, self._user, self._generation, self._buckets, chunk)
            self._outbox.put(_ADD.command((), arguments))

    def finish(self) -> None:
        """Makes the list the user's own. What it replaces is thrown away."""
        if self._buckets == 1:
            arguments = (SUPPRESSION_BUCKET_PREFIX, self._user, self._generation, self._seconds, b"".join(self._short))
            self._outbox.put(_WRITE_SHORT.command((self._marker,), arguments), self._replaced)
            return
        # The buckets outlive the marker: a marker without buckets answers "unknown" to everything.
        self._build(self._seconds + 60)
        self._outbox.settle()
        marker = f"{self._generation}:{self._buckets}"
        self._outbox.put(("SET", self._marker, marker, "EX", self._seconds, "GET"), self._replaced)

    def abandon(self) -> None:
        """Throws away what was written; the list from before stays."""
        if self._buckets > 1:
            self._drop(self._generation, self._buckets)

    def _build(self, seconds: int) -> None:
        for first, last in _ranges(self._buckets):
            arguments = (SUPPRESSION_BUCKET_PREFIX, self._user, self._generation, first, last, seconds)
            self._outbox.put(_BUILD.command((), arguments))

    def _replaced(self, marker: bytes | None) -> None:
        generation, _, buckets = (marker or b"").decode().partition(":")
        if buckets.isdecimal():
            self._drop(generation, int(buckets))

    def _drop(self, generation: str, buckets: int) -> None:
        for first, last in _ranges(buckets):
            self._outbox.put(_DROP.command((), (SUPPRESSION_BUCKET_PREFIX, self._user, generation, first, last)))


def _ranges(buckets: int) -> Iterator[tuple[int, int]]:
    for first in range(0, buckets, _CHUNK):
        yield first, min(first + _CHUNK, buckets) - 1
