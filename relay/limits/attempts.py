"""Failed AUTHs by origin: answered ever more slowly, then refused for a while, without locking out keys that are known
there.

What counts is how many *different* wrong keys came from an origin: a guesser tries many, while a device that was left
behind with an old key repeats that one, and must not shut out the office around it. While an origin is refused, these
are looked at all the same:

- a key that was good from there within the last day,
- one key a second, whichever comes: a good key that has not been used from there before gets in when it tries again,
  and a guesser is left with 60 guesses a minute, of keys that have more than 128 random bits.

A key that is not looked up gets the same 421 after the same time as a wrong one that was.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, TypeVar

import structlog

from relay.core.errors import RedisUnavailable
from relay.core.frozen import frozen
from relay.redis import keys
from relay.redis.link import RedisLink, Script

log = structlog.get_logger(__name__)

# By Redis's clock: those of two relays need not agree, and one that is ahead would throw away what the other counted.
_FAILED: Final = Script(
    """
-- KEYS: failures of an origin. ARGV: wrong key, seconds that it counts. Returns how many keys failed within them.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - ARGV[2]))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
"""
)

# Those that may turn out to be wrong count as if they had: many at once are no way round the limit.
_BEGIN: Final = Script(
    """
-- KEYS: failures and look-ups of an origin, and whether it is refused. ARGV: key, seconds that a failure counts,
-- failures to refusal, seconds that a look-up may take. Returns whether the key may be looked up now.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.6f', now - ARGV[4]))
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  local failed = redis.call('ZCOUNT', KEYS[1], string.format('%.6f', now - ARGV[2]), '+inf')
  if failed + redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
end
redis.call('ZADD', KEYS[2], string.format('%.6f', now), ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
"""
)

Key = TypeVar("Key")
Value = TypeVar("Value")

#: For how long a failed AUTH counts; seconds.
WINDOW_SECONDS: Final = 900
#: For how long a key that was good counts as known there; seconds.
KNOWN_SECONDS: Final = 86_400
#: How often that is written again for a key that is in use; seconds.
_REFRESH_SECONDS: Final = 3_600
#: How often a refused origin's unknown key is looked at; seconds.
LOOK_SECONDS: Final = 1
#: A look-up that has not ended after so long (seconds) is taken for that of a process that ended.
LOOK_UP_SECONDS: Final = 10
#: The delay doubles with each failure, up to the longest, which is reached after so many doublings.
_DOUBLINGS: Final = 5
#: Origins and pairs that a process remembers by itself: at most some 10 MB.
MOST_REMEMBERED: Final = 5_000


@frozen
class Candidate:
    """A key that a client presents: its origin, and what it is known by here. Both are digests of
    `relay.limits.origin`."""

    origin: bytes
    key: bytes


@frozen
class Admission:
    """Whether a key is looked at, and whether its origin is refused as far as unknown keys go."""

    looked_at: bool
    refused: bool
    #: The key was good there before.
    known: bool = field(default=False, compare=False)


_WELCOME: Final = Admission(looked_at=True, refused=False)
_KNOWN: Final = Admission(looked_at=True, refused=False, known=True)


@dataclass(slots=True)
class _Record:
    """What a process knows of one origin by itself. Moments are of the monotonic clock."""

    #: Wrong key → when it was last seen.
    failures: dict[bytes, float] = field(default_factory=dict)
    refused_until: float = 0.0
    next_look: float = 0.0
    #: Key that is being looked up → since when.
    look_ups: dict[bytes, float] = field(default_factory=dict)


class Attempts:
    """Counts failed AUTHs, in Redis for all processes, here while Redis does not answer."""

    def __init__(self, link: RedisLink, *, most: int, refusal_seconds: int, longest_delay: float) -> None:
        """`most`: different wrong keys from one origin within WINDOW_SECONDS until it is refused for `refusal_seconds`;
        0: it never is. `longest_delay`: seconds from an AUTH to the reply that it failed, at most."""
        self._link = link
        self._most = most
        self._refusal_seconds = refusal_seconds
        self.longest_delay = longest_delay
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        #: (origin, key) → when it was last written to Redis.
        self._known: OrderedDict[Candidate, float] = OrderedDict()

    def admit(self, candidate: Candidate) -> Admission:
        """Whether a key may be looked at now. One round trip; none for a key that was good there before."""
        if not self._most or candidate in self._known:
            return _KNOWN
        refused_key = _refused_key(candidate.origin)
        try:
            refused, known = self._link.call_all([("EXISTS", refused_key), ("EXISTS", _known_key(candidate))])
            if known == 1:
                return Admission(looked_at=True, refused=refused == 1, known=True)
            if refused != 1:
                # What was counted while Redis could not count is not forgotten.
                return self._admit_alone(candidate)
            looked_at = self._link.call("SET", _look_key(candidate.origin), b"1", "NX", "EX", LOOK_SECONDS)
        except RedisUnavailable:
            return self._admit_alone(candidate)
        return Admission(looked_at=looked_at is not None, refused=True)

    def begin(self, candidate: Candidate) -> bool:
        """Whether a key that is not known there may be looked up now; `end` has to follow then.

        Never more at once than could fail before their origin is refused. One round trip.
        """
        origin = candidate.origin
        names = [_failures_key(origin), _look_ups_key(origin), _refused_key(origin)]
        try:
            return bool(_BEGIN.run(self._link, names, [candidate.key, WINDOW_SECONDS, self._most, LOOK_UP_SECONDS]))
        except RedisUnavailable:
            return self._begin_alone(candidate)

    def end(self, candidate: Candidate) -> None:
        """The look-up has ended, and `failed` has noted it if so. Does not block."""
        self._link.post([("ZREM", _look_ups_key(candidate.origin), candidate.key)])
        record = self._records.get(candidate.origin)
        if record is not None:
            record.look_ups.pop(candidate.key, None)

    def failed(self, candidate: Candidate, address: str | None = None) -> float:
        """Notes that a key was wrong; how many seconds after the AUTH the reply is due.

        `address`: the client's, for the log line that says that its origin is refused from now on.
        """
        self._known.pop(candidate, None)
        if not self._most:
            return self._delay(1)
        key = _failures_key(candidate.origin)
        try:
            count = _FAILED.run(self._link, [key], [candidate.key, WINDOW_SECONDS])
        except RedisUnavailable:  # an error reply among them, of a server that is full or in a bad way
            return self._failed_alone(candidate, address)
        if count >= self._most:
            self._report(address)
            self._link.post([("SET", _refused_key(candidate.origin), b"1", "EX", self._refusal_seconds), ("DEL", key)])
        return self._delay(count)

    def succeeded(self, candidate: Candidate) -> None:
        """Notes that a key was good. Does not block, and costs nothing for a key that is in use."""
        now = time.monotonic()
        written = self._known.get(candidate)
        if not self._most or (written is not None and now - written < _REFRESH_SECONDS):
            return
        _remember(self._known, candidate, now)
        self._link.post([("SET", _known_key(candidate), b"1", "EX", KNOWN_SECONDS)])

    def _delay(self, count: int) -> float:
        return self.longest_delay / (1 << max(0, _DOUBLINGS - (count - 1)))

    def _report(self, address: str | None) -> None:
        named = {} if address is None else {"client": address}
        log.warning("origin_refused", **named, refused_seconds=self._refusal_seconds)

    # Without Redis

    def _admit_alone(self, candidate: Candidate) -> Admission:
        record = self._records.get(candidate.origin)
        now = time.monotonic()
        if record is None or record.refused_until <= now:
            return _WELCOME
        looked_at = record.next_look <= now
        if looked_at:
            record.next_look = now + LOOK_SECONDS
        return Admission(looked_at, refused=True)

    def _begin_alone(self, candidate: Candidate) -> bool:
        record = self._records.get(candidate.origin) or _Record()
        _remember(self._records, candidate.origin, record)
        now = time.monotonic()
        record.look_ups = {key: since for key, since in record.look_ups.items() if now - since < LOOK_UP_SECONDS}
        others = record.look_ups.keys() - {candidate.key}
        failed = sum(now - seen < WINDOW_SECONDS for seen in record.failures.values())
        if record.refused_until > now:
            return False
        if candidate.key not in record.look_ups and failed + len(others) >= self._most:
            return False
        record.look_ups[candidate.key] = now
        return True

    def _failed_alone(self, candidate: Candidate, address: str | None) -> float:
        record = self._records.get(candidate.origin) or _Record()
        _remember(self._records, candidate.origin, record)
        now = time.monotonic()
        record.failures[candidate.key] = now
        record.failures = {key: seen for key, seen in record.failures.items() if now - seen < WINDOW_SECONDS}
        count = len(record.failures)
        if count >= self._most:
            self._report(address)
            record.refused_until = now + self._refusal_seconds
            record.failures.clear()
        return self._delay(count)


def _remember(memory: OrderedDict[Key, Value], key: Key, value: Value) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > MOST_REMEMBERED:
        memory.popitem(last=False)


def _failures_key(origin: bytes) -> bytes:
    return keys.AUTH_FAILURES_PREFIX + origin.hex().encode()


def _refused_key(origin: bytes) -> bytes:
    return keys.AUTH_REFUSED_PREFIX + origin.hex().encode()


def _look_key(origin: bytes) -> bytes:
    return keys.AUTH_LOOK_PREFIX + origin.hex().encode()


def _look_ups_key(origin: bytes) -> bytes:
    return keys.AUTH_LOOK_UPS_PREFIX + origin.hex().encode()


def _known_key(candidate: Candidate) -> bytes:
    return keys.AUTH_KNOWN_PREFIX + (candidate.origin + candidate.key).hex().encode()
