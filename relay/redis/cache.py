"""Redis, and what to do without it: it only makes a right answer faster (contract section 4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeVar

from relay.core import metrics
from relay.core.api_keys import KeyRecord
from relay.core.errors import RedisUnavailable
from relay.core.frozen import frozen
from relay.redis import keys, suppression_lists
from relay.redis.claims import FUNCTIONS, RELEASE, TAKE, Claim, Holder, claim_key, holders_of
from relay.redis.key_entries import (
    NOTHING,
    UNKNOWN_KEY_SECONDS,
    CachedKey,
    cached_key,
    counted,
    key_commands,
    key_names,
)
from relay.redis.link import RedisLink, Script
from relay.redis.protocol import Argument

#: Recipients that one script call looks at. Redis serves no other client meanwhile: at 4 µs each, measured with Valkey
#: 9, a call takes a fiftieth of the time that the link waits for an answer. A message with more takes several calls.
SLICE: Final = 500

_T = TypeVar("_T")
_ADDRESSES_KNOWN: Final = metrics.CACHE.labels("suppression", "hit")
_ADDRESSES_UNKNOWN: Final = metrics.CACHE.labels("suppression", "miss")


_SCREEN = Script(
    FUNCTIONS
    + f"""
local entry_prefix = '{keys.SUPPRESSION_ENTRY_PREFIX.decode()}'
local marker_prefix = '{keys.SUPPRESSION_MARKER_PREFIX.decode()}'
local bucket_prefix, intents = '{keys.SUPPRESSION_BUCKET_PREFIX.decode()}', '{keys.INTENTS_KEY.decode()}'
"""
    + """
-- KEYS: shared key entry, its domain, unknown key, list marker, and the claim if there is one
-- ARGV: email id, seconds of a claim, n, n digests, ids for intents
-- Returns those three entries, then recipients that aren't known to be clear, then those that others have claimed, each
-- as (position, what there is): a reason, '?' unknown, '+' on the list; "<email id>:<age in ms>".
local found = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
local marker, states, held, suppressed = false, {}, {}, false
local n = tonumber(ARGV[3])
local generation, buckets, user

for i = 1, n do
  local digest = ARGV[3 + i]
  local state = redis.call('GET', entry_prefix .. digest)
  if not state then
    if marker == false then
      marker = redis.call('GET', KEYS[4]) or nil
      if marker then
        generation, buckets = string.match(marker, '^(%x+):(%d+)$')
        buckets = tonumber(buckets)
        user = string.sub(KEYS[4], #marker_prefix + 1)
      end
    end
    state = '?'
    if buckets then
      local number, bucket = struct.unpack('>i4I4', digest)
      local key = bucket_prefix .. generation .. ':' .. (bucket % buckets) .. ':' .. user
      local there = redis.call('SMISMEMBER', key, '0', string.format('%d', number))
      if there[1] == 1 then state = there[2] == 1 and '+' or '-' end
    end
  end
  if state ~= '-' then
    states[#states + 1] = i
    states[#states + 1] = state
    if state ~= '?' and state ~= '+' then suppressed = true end
  end
end

if not suppressed then
  if KEYS[5] then
    local seconds = tonumber(ARGV[2])
    for i = 1, n do
      local holder = take(KEYS[5], ARGV[3 + i], ARGV[1], seconds, '')
      if holder then
        held[#held + 1] = i
        held[#held + 1] = holder
      end
    end
    redis.call('EXPIRE', KEYS[5], seconds)
  end
  for i = 4 + n, #ARGV do redis.call('ZADD', intents, now, ARGV[i]) end
end
return {found[1], found[2], found[3], states, held}
"""
)


@frozen
class Screened:
    """What Redis knows about one message. Recipients are in comparison form."""

    key: CachedKey
    suppressed: Mapping[str, str]
    #: On the user's list, which is no proof: Postgres has to confirm it.
    listed: Sequence[str]
    #: Nothing is known about these.
    unknown: Sequence[str]
    held: Mapping[str, Holder]


class Cache:
    """One Redis or Valkey, or none. No method raises for Redis's sake: the answer is "don't know" then."""

    def __init__(self, url: str | None, *, verify_tls: bool = True, timeout: float = 0.1, pause: float = 1.0) -> None:
        """`timeout`: seconds that a reply may take. `pause`: seconds without Redis after it failed."""
        self.link = RedisLink(url, verify_tls=verify_tls, timeout=timeout, pause=pause)

    def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            return bool(self.link.call("PING"))
        except RedisUnavailable:
            return False

    def close(self) -> None:
        """Closes the connection."""
        self.link.close()

    def find_key(self, token_hash: str) -> CachedKey:
        """What is known about the key with this hash."""
        try:
            shared, domain, unknown = self.link.call("MGET", *key_names(token_hash))
        except RedisUnavailable:
            return NOTHING
        return counted(cached_key((shared, domain, unknown)))

    def store_key(self, token_hash: str, record: KeyRecord) -> None:
        """Remembers a key, in OpenSend's own form."""
        self.link.post(key_commands(token_hash, record))

    def forget_keys(self, token_hashes: Collection[str]) -> None:
        """Knows nothing about these keys any more."""
        if token_hashes:
            self.link.post([("DEL", *(name for token_hash in token_hashes for name in key_names(token_hash)[:2]))])

    def store_unknown_key(self, token_hash: str) -> None:
        """Remembers that there is no such key, and forgets what OpenSend may still remember of it."""
        shared, domain, unknown = key_names(token_hash)
        self.link.post([("DEL", shared, domain), ("SET", unknown, b"1", "EX", UNKNOWN_KEY_SECONDS)])

    def screen(
        self,
        token_hash: str,
        user_id: str,
        recipients: Sequence[str],
        *,
        claim: Claim | None,
        intents: Sequence[str],
    ) -> Screened | None:
        """Everything there is to know about a message, in one round trip up to SLICE recipients. None: no answer.

        Unless a recipient is known to be suppressed, its recipients are claimed and the intents noted. When Redis does
        not answer, or a recipient in another slice is suppressed, that may have happened or not: `release` undoes it.
        """
        if len(recipients) > SLICE:
            return self._screen_slices(token_hash, user_id, _slices(recipients), claim=claim, intents=intents)
        prefix = suppression_lists.digest_prefix(user_id)
        names: tuple[bytes, ...] = (*key_names(token_hash), suppression_lists.marker_key(user_id))
        if claim is not None:
            names += (claim_key(claim),)
        arguments: list[Argument] = ["", 0] if claim is None else [claim.email_id, claim.seconds]
        arguments.append(len(recipients))
        arguments += [suppression_lists.digest(prefix, email) for email in recipients]
        arguments += intents
        try:
            shared, domain, unknown, states, held = _SCREEN.run(self.link, names, arguments)
        except RedisUnavailable:
            return None
        suppressed: dict[str, str] = {}
        listed: list[str] = []
        unsure: list[str] = []
        if states:
            for position, state in zip(states[::2], states[1::2], strict=True):
                email = recipients[position - 1]
                if state == b"?":
                    unsure.append(email)
                elif state == b"+":
                    listed.append(email)
                else:
                    suppressed[email] = state.decode("utf-8", "replace")
        _ADDRESSES_UNKNOWN.inc(len(unsure))
        _ADDRESSES_KNOWN.inc(len(recipients) - len(unsure))
        key = counted(cached_key((shared, domain, unknown)))
        return Screened(
            key, suppressed, listed=listed, unknown=unsure, held=holders_of(recipients, held) if held else {}
        )

    def _screen_slices(
        self,
        token_hash: str,
        user_id: str,
        slices: Sequence[Sequence[str]],
        *,
        claim: Claim | None,
        intents: Sequence[str],
    ) -> Screened | None:
        """As `screen`, with a round trip for each slice. The intents are noted with the last."""
        screened = []
        for number, part in enumerate(slices, 1):
            noted = intents if number == len(slices) else ()
            found = self.screen(token_hash, user_id, part, claim=claim, intents=noted)
            if found is None:
                return None
            screened.append(found)
        return _together(screened)

    def remember(self, user_id: str, states: Mapping[str, str | None]) -> None:
        """Remembers addresses (comparison form): suppressed for a reason, or (None) not."""
        for part in _slices(list(states.items())):
            self.link.post(suppression_lists.entry_commands(user_id, part))

    def take(self, claim: Claim, wanted: Mapping[str, str | None]) -> dict[str, Holder]:
        """Claims recipients, also from the holder whose email id is given. Returns those that another claim holds."""
        prefix = suppression_lists.digest_prefix(claim.user_id)
        held: dict[str, Holder] = {}
        for part in _slices(list(wanted)):
            arguments: list[Argument] = [claim.email_id, claim.seconds]
            for email in part:
                arguments += (suppression_lists.digest(prefix, email), wanted[email] or "")
            try:
                held |= holders_of(part, TAKE.run(self.link, [claim_key(claim)], arguments))
            except RedisUnavailable:
                break
        return held

    def release(self, claim: Claim | None, recipients: Collection[str], intents: Sequence[str]) -> None:
        """Gives up what `screen` claimed and noted. Returns once the claim is free: a message may be waiting for it."""
        if intents:
            self.link.post([("ZREM", keys.INTENTS_KEY, *intents)])
        if claim is None:
            return
        prefix = suppression_lists.digest_prefix(claim.user_id)
        for part in _slices(list(recipients)):
            digests = [suppression_lists.digest(prefix, email) for email in part]
            try:
                RELEASE.run(self.link, [claim_key(claim)], [claim.email_id, *digests])
            except RedisUnavailable:
                return  # the next transaction finds that the claim has no row, and takes it over


def _slices(items: Sequence[_T]) -> list[Sequence[_T]]:
    return [items[start : start + SLICE] for start in range(0, len(items), SLICE)]


def _together(parts: Sequence[Screened]) -> Screened:
    """What was found out in slices. The key is as it was last."""
    suppressed: dict[str, str] = {}
    held: dict[str, Holder] = {}
    for part in parts:
        suppressed |= part.suppressed
        held |= part.held
    listed = [email for part in parts for email in part.listed]
    unknown = [email for part in parts for email in part.unknown]
    return Screened(parts[-1].key, suppressed, listed=listed, unknown=unknown, held=held)
