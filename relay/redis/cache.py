"""Redis, and what to do without it: it only makes a right answer faster (contract section 4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import orjson

from relay.core import metrics
from relay.core.frozen import frozen
from relay.core.records import ApiKey
from relay.postgres.store import KeyRecord, is_domain_id, restriction
from relay.redis import suppression_lists
from relay.redis.claims import Claim, Holder
from relay.redis.link import RedisLink, Script, Silent
from relay.redis.protocol import Argument, Command

#: The longest that we let a key live in the cache that is shared with OpenSend (contract section 4), in seconds.
KEY_SECONDS: Final = 60
#: How long a key that does not exist is remembered, in seconds.
UNKNOWN_KEY_SECONDS: Final = 10

_KEYS_KNOWN: Final = metrics.CACHE.labels("key", "hit")
_KEYS_UNKNOWN: Final = metrics.CACHE.labels("key", "miss")
_ADDRESSES_KNOWN: Final = metrics.CACHE.labels("suppression", "hit")
_ADDRESSES_UNKNOWN: Final = metrics.CACHE.labels("suppression", "miss")

INTENTS_KEY: Final = b"smtp-relay:jobs:intents"


# A claim is a field "<email id>:<unix ms>" for each recipient's digest. It holds for as long as its message is known as
# one; the key lives on with the last claim in it, so the older ones' ages are looked at.
_CLAIM_FUNCTIONS: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function take(key, field, id, seconds, stale)
  local value = redis.call('HGET', key, field)
  if value then
    local holder, since = string.match(value, '^(.*):(%d+)$')
    if holder and holder ~= id and holder ~= stale and tonumber(since) + seconds * 1000 > now then
      -- A claim from the future is from before the clock was put back: how long before, nobody knows.
      return holder .. ':' .. string.format('%d', math.abs(now - tonumber(since)))
    end
    if holder == id then return nil end
  end
  redis.call('HSET', key, field, id .. ':' .. string.format('%d', now))
  return nil
end
"""

_SCREEN = Script(
    _CLAIM_FUNCTIONS
    + f"""
local entry_prefix = '{suppression_lists.ENTRY_PREFIX.decode()}'
local marker_prefix = '{suppression_lists.MARKER_PREFIX.decode()}'
local bucket_prefix, intents = '{suppression_lists.BUCKET_PREFIX.decode()}', '{INTENTS_KEY.decode()}'
"""
    + """
-- KEYS: shared key entry, its domain, unknown key, list marker, claim or ''
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
  if KEYS[5] ~= '' then
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

_TAKE = Script(
    _CLAIM_FUNCTIONS
    + """
-- KEYS: claim. ARGV: email id, seconds, then pairs: digest, the id that may be displaced or ''
local held, seconds = {}, tonumber(ARGV[2])
for i = 3, #ARGV, 2 do
  local holder = take(KEYS[1], ARGV[i], ARGV[1], seconds, ARGV[i + 1])
  if holder then
    held[#held + 1] = (i - 1) / 2
    held[#held + 1] = holder
  end
end
redis.call('EXPIRE', KEYS[1], seconds)
return held
"""
)

_RELEASE = Script(
    """
-- KEYS: claim. ARGV: email id, digests
for i = 2, #ARGV do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if value and string.sub(value, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
)


@frozen
class CachedKey:
    """What Redis knows about an API key: at most one of the two is the case; neither, and it knows nothing."""

    key: ApiKey | None
    unknown: bool


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


_NOTHING: Final = CachedKey(None, False)


class Cache:
    """One Redis or Valkey, or none. No method raises for Redis's sake: the answer is "don't know" then."""

    def __init__(self, url: str | None, *, verify_tls: bool = True, timeout: float = 0.1, pause: float = 1.0) -> None:
        """`timeout`: seconds that a reply may take. `pause`: seconds without Redis after it failed."""
        self.link = RedisLink(url, verify_tls=verify_tls, timeout=timeout, pause=pause)

    def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            return bool(self.link.call("PING"))
        except Silent:
            return False

    def close(self) -> None:
        """Closes the connection."""
        self.link.close()

    def find_key(self, token_hash: str) -> CachedKey:
        """What is known about the key with this hash."""
        try:
            shared, domain, unknown = self.link.call("MGET", *_key_names(token_hash))
        except Silent:
            return _NOTHING
        return _counted(_cached_key(shared, domain, unknown))

    def store_key(self, token_hash: str, record: KeyRecord) -> None:
        """Remembers a key, in OpenSend's own form."""
        self.link.post(key_commands(token_hash, record))

    def forget_keys(self, token_hashes: Collection[str]) -> None:
        """Knows nothing about these keys any more."""
        if token_hashes:
            self.link.post([("DEL", *(name for token_hash in token_hashes for name in _key_names(token_hash)[:2]))])

    def store_unknown_key(self, token_hash: str) -> None:
        """Remembers that there is no such key."""
        self.link.post([("SET", _key_names(token_hash)[2], b"1", "EX", UNKNOWN_KEY_SECONDS)])

    def screen(
        self,
        token_hash: str,
        user_id: str,
        recipients: Sequence[str],
        claim: Claim | None,
        intents: Sequence[str],
    ) -> Screened | None:
        """Everything there is to know about a message, in one round trip. None: Redis is silent.

        Unless somebody is known to be suppressed, its recipients are claimed and the intents noted. When Redis is
        silent, that may have happened or not.
        """
        prefix = suppression_lists.digest_prefix(user_id)
        keys = (
            *_key_names(token_hash),
            suppression_lists.marker_key(user_id),
            b"" if claim is None else _claim_key(claim),
        )
        arguments: list[Argument] = ["", 0] if claim is None else [claim.email_id, claim.seconds]
        arguments.append(len(recipients))
        arguments += [suppression_lists.digest(prefix, email) for email in recipients]
        arguments += intents
        try:
            shared, domain, unknown, states, held = _SCREEN.run(self.link, keys, arguments)
        except Silent:
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
        key = _counted(_cached_key(shared, domain, unknown))
        return Screened(key, suppressed, listed, unsure, _holders(recipients, held) if held else {})

    def remember(self, user_id: str, states: Mapping[str, str | None]) -> None:
        """Remembers addresses (comparison form): suppressed for a reason, or (None) not."""
        if states:
            self.link.post(suppression_lists.entry_commands(user_id, list(states.items())))

    def take(self, claim: Claim, wanted: Mapping[str, str | None]) -> dict[str, Holder]:
        """Claims recipients, also from the holder whose email id is given. Returns those that somebody else holds."""
        prefix = suppression_lists.digest_prefix(claim.user_id)
        recipients = list(wanted)
        arguments: list[Argument] = [claim.email_id, claim.seconds]
        for email, displaced in wanted.items():
            arguments += (suppression_lists.digest(prefix, email), displaced or "")
        try:
            return _holders(recipients, _TAKE.run(self.link, [_claim_key(claim)], arguments))
        except Silent:
            return {}

    def release(self, claim: Claim | None, recipients: Collection[str], intents: Sequence[str]) -> None:
        """Gives up what `screen` claimed and noted. Returns once the claim is free: somebody may be waiting for it."""
        if intents:
            self.link.post([("ZREM", INTENTS_KEY, *intents)])
        if claim is None:
            return
        prefix = suppression_lists.digest_prefix(claim.user_id)
        digests = [suppression_lists.digest(prefix, email) for email in recipients]
        try:
            _RELEASE.run(self.link, [_claim_key(claim)], [claim.email_id, *digests])
        except Silent:
            return  # whoever meets the claim will find that it has no row, and take it over


def key_commands(token_hash: str, record: KeyRecord) -> list[Command]:
    """The commands that remember a key. A key restricted to a domain's uuid takes a second entry, for the name."""
    key = record.key
    shared, domain, _ = _key_names(token_hash)
    document = {
        "apiKeyId": key.id,
        "permission": key.permission,
        "domain": record.domain_column,
        "userId": key.user_id,
    }
    commands: list[Command] = [("SET", shared, orjson.dumps(document), "EX", KEY_SECONDS)]
    if record.domain_column is not None and is_domain_id(record.domain_column):
        named = {"column": record.domain_column, "name": key.domain}
        commands.insert(0, ("SET", domain, orjson.dumps(named), "EX", KEY_SECONDS))
    return commands


def _counted(cached: CachedKey) -> CachedKey:
    (_KEYS_KNOWN if cached.key is not None or cached.unknown else _KEYS_UNKNOWN).inc()
    return cached


@lru_cache(maxsize=1024)
def _key_names(token_hash: str) -> tuple[bytes, bytes, bytes]:
    """The keys of the shared entry, of the name behind its domain's uuid, and of the mark of a hash that no key has."""
    octets = token_hash.encode()
    return b"auth:apikey:" + octets, b"smtp-relay:key-domain:" + octets, b"smtp-relay:unknown-key:" + octets


@lru_cache(maxsize=4096)
def _cached_key(shared: bytes | None, domain: bytes | None, unknown: bytes | None) -> CachedKey:
    """What the three entries of a key mean. What can't be understood is as good as nothing."""
    if shared is None:
        return CachedKey(None, unknown is not None)
    entry = _object(shared)
    key_id, user_id, permission = (entry.get(name) for name in ("apiKeyId", "userId", "permission"))
    column = entry.get("domain")
    if not (isinstance(key_id, str) and isinstance(user_id, str) and isinstance(permission, str) and user_id):
        return _NOTHING
    if not (column is None or isinstance(column, str)):
        return _NOTHING
    if column is None or not is_domain_id(column):
        return CachedKey(ApiKey(key_id, user_id, permission, restriction(column, None)), False)
    named = _object(domain)
    name = named.get("name")
    if named.get("column") != column or not isinstance(name, str):
        return _NOTHING
    return CachedKey(ApiKey(key_id, user_id, permission, restriction(column, name)), False)


def _object(document: bytes | None) -> dict[str, Any]:
    try:
        value = orjson.loads(document or b"{}")
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _claim_key(claim: Claim) -> bytes:
    return b"smtp-relay:seen:" + claim.key


def _holders(recipients: Sequence[str], held: Sequence[Any]) -> dict[str, Holder]:
    holders = {}
    for position, value in zip(held[::2], held[1::2], strict=True):
        email_id, _, age = value.decode().rpartition(":")
        holders[recipients[position - 1]] = Holder(email_id, int(age))
    return holders
