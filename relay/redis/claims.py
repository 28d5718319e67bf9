"""How a message that comes again, whole or split over transactions, is known to be the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from relay.core.frozen import frozen
from relay.redis.keys import CLAIM_PREFIX
from relay.redis.link import Script
from relay.redis.protocol import RedisReply


@frozen
class Holder:
    """The claim that a recipient has already: the row that the recipient is in, or will be, and for how long.

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

    The texts are hashed with their lengths, so that none can be taken for a part of the next.
    """
    user, message = user_id.encode("utf-8", "surrogatepass"), message_id.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"%d %d %b%b" % (len(user), len(message), user, message))
    digest.update(content)
    return digest.digest()


# A claim is a field "<email id>:<unix ms>" for each recipient's digest. It holds for as long as its message is known as
# one; the key is kept with the last claim in it, so the older ones' ages are looked at.
FUNCTIONS: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function take(key, field, id, seconds, stale)
  local value = redis.call('HGET', key, field)
  if value then
    local holder, since = string.match(value, '^(.*):(%d+)$')
    if holder and holder ~= id and holder ~= stale and tonumber(since) + seconds * 1000 > now then
      -- A claim from the future is from before the clock was put back: how long before is not known.
      return holder .. ':' .. string.format('%d', math.abs(now - tonumber(since)))
    end
    if holder == id then return nil end
  end
  redis.call('HSET', key, field, id .. ':' .. string.format('%d', now))
  return nil
end
"""
TAKE = Script(
    FUNCTIONS
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
RELEASE = Script(
    """
-- KEYS: claim. ARGV: email id, digests
for i = 2, #ARGV do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if value and string.sub(value, 1, #ARGV[1] + 1) == ARGV[1] .. ':' then redis.call('HDEL', KEYS[1], ARGV[i]) end
end
"""
)


def claim_key(claim: Claim) -> bytes:
    return CLAIM_PREFIX + claim.key


def holders_of(recipients: Sequence[str], held: Sequence[RedisReply]) -> dict[str, Holder]:
    holders = {}
    for position, value in zip(held[::2], held[1::2], strict=True):
        email_id, _, age = value.decode().rpartition(":")
        holders[recipients[position - 1]] = Holder(email_id, int(age))
    return holders
