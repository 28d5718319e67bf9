"""How far each delivery process is with each of its mails, for the processes that come after it.

A process has a name (`owner`). A sorted set has the time of each owner's last beat, and a hash for each owner has the
state of each row that it has claimed:

    c   claimed: the provider has not been called
    h   handing over: written, and answered by Redis, before the provider is called
    s   the provider has the mail: its answer, which may not be in Postgres yet

So `c` says for certain that the provider does not have the mail, as long as this is the server that `h` was written to:
the hash names the run of the server that it began with, since a server that starts from an old copy may have lost what
was written last. An owner that was taken for ended is marked so in its hash: from then on it hands nothing over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from gevent.hub import get_hub

from relay.core.errors import RedisUnavailable
from relay.core.frozen import frozen
from relay.core.gathered import Gathered, NotAnswered
from relay.core.ids import is_uuid
from relay.redis.keys import DELIVERY_CLAIMS_PREFIX, DELIVERY_OWNERS_KEY
from relay.redis.link import RedisLink, Script
from relay.redis.protocol import Argument, Command, RedisReply

CLAIMED, HANDING_OVER, SENT = "c", "h", "s"

#: `Note.value`. So many digits of microseconds are the year 5138.
_NOTE: Final = re.compile(rb"([a-z]):([0-9]{1,17}):([01]):(.*)", re.DOTALL)

#: Milliseconds without a beat after which others take an owner for ended.
SILENT_MS: Final = 45_000
#: Seconds for which an owner's hash is kept without a beat: longer than any lease.
KEEP_SECONDS: Final = 3600

_COMMON: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Of this start of the server; empty where the user may not ask.
local function run()
  local info = redis.pcall('INFO', 'server')
  return type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
end
"""
_BEAT = Script(
    _COMMON
    + """
-- KEYS: owners, the owner's hash. ARGV: owner, seconds, milliseconds of silence, 1: the first beat under this name
-- Returns false where the owner must not go on under its name, else the owners that have fallen silent.
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[2], 'run', run())
elseif redis.call('HEXISTS', KEYS[2], 'dead') == 1 or redis.call('HGET', KEYS[2], 'run') ~= run() then
  return false
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
"""
)
_HAND_OVER = Script(
    """
-- KEYS: the owner's hash. ARGV: seconds, then pairs: email id, value
-- A server that has forgotten the owner may have forgotten that it was taken for dead.
if redis.call('HEXISTS', KEYS[1], 'dead') == 1 or redis.call('HEXISTS', KEYS[1], 'run') == 0 then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
"""
)
_TAKE = Script(
    _COMMON
    + """
-- KEYS: owners, the owner's hash. ARGV: owner, milliseconds of silence, 1: it is certainly dead
-- Returns false where it is alive, or others have it; else whether this is the server of its first beat, and the hash.
local beat = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not beat or (ARGV[3] == '0' and now - tonumber(beat) < tonumber(ARGV[2])) then return false end
if ARGV[3] == '1' or redis.call('HEXISTS', KEYS[2], 'dead') == 0 then redis.call('HSET', KEYS[2], 'dead', ARGV[3]) end
if redis.call('TTL', KEYS[2]) < 0 then redis.call('EXPIRE', KEYS[2], 3600) end
-- The process that takes it may end too: others look at it again later.
redis.call('ZADD', KEYS[1], now, ARGV[1])
local known = redis.call('HGET', KEYS[2], 'run')
return {known and known ~= '' and known == run() and 1 or 0, redis.call('HGETALL', KEYS[2])}
"""
)
_HELD = Script(
    """
-- KEYS: owners. ARGV: prefix of their hashes, then pairs: email id, mark
-- Returns the positions of those that an owner which is not dead works on, or whose answer waits to be recorded.
local held = {}
for _, owner in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local key = ARGV[1] .. owner
  local dead = redis.call('HEXISTS', key, 'dead') == 1
  for i = 2, #ARGV, 2 do
    local value = redis.call('HGET', key, ARGV[i])
    if value then
      local state, mark = string.match(value, '^(%a):(%d+)')
      if mark == ARGV[i + 1] and (state == 's' or not dead) then held[#held + 1] = i / 2 end
    end
  end
end
return held
"""
)
_RETIRE = Script(
    """
-- KEYS: owners, the owner's hash. ARGV: owner
local known = redis.call('HEXISTS', KEYS[2], 'run') + redis.call('HEXISTS', KEYS[2], 'dead')
if redis.call('HLEN', KEYS[2]) > known then
  redis.call('HSET', KEYS[2], 'dead', '1')
  redis.call('ZADD', KEYS[1], 0, ARGV[1])
else
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[1])
end
"""
)


@frozen
class Note:
    """What is known of one claimed row. `mark`: the claim's, in microseconds since 1970."""

    email_id: str
    state: str
    mark: int
    #: Whether the worker records the event `sent`; if not, the provider's own is to come.
    records_sent: bool
    #: The provider's name of the mail, where it has it.
    message_id: str

    def value(self) -> str:
        """As it stands in the hash."""
        return f"{self.state}:{self.mark}:{int(self.records_sent)}:{self.message_id}"


@frozen
class Estate:
    """What an owner that has ended has left. `sure`: the states are those that it wrote last."""

    sure: bool
    #: Whether its process has ended for certain; if not, it may only have stood still.
    ended: bool
    notes: tuple[Note, ...]


class ClaimStates:
    """The states of claims in Redis. What is posted may be lost with Redis; all else raises RedisUnavailable.

    Greenlets that write at about the same time share a command: each costs as much as a tenth of a small mail.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        #: What has been posted in this turn of the loop, by owner and row; None: the row is no longer claimed.
        self._posted: dict[str, dict[str, str | None]] = {}
        self._handing_over: Gathered[tuple[str, Note], bool] = Gathered("claims_handed_over", self._hand_over)

    @property
    def up(self) -> bool:
        """Whether Redis is asked at all just now."""
        return self._link.up

    def post(self, owner: str, note: Note) -> None:
        """Writes a state, without waiting: before the next turn of the loop, and before all else that is asked."""
        self._post(owner, note.email_id, note.value())

    def post_end(self, owner: str, email_id: str) -> None:
        """The row is no longer claimed. As `post`."""
        self._post(owner, email_id, None)

    def hand_over(self, owner: str, note: Note) -> bool:
        """Writes that the provider is called now; False: it must not be, others may have taken the owner for ended."""
        try:
            return self._handing_over.ask((owner, note))
        except NotAnswered:
            raise RedisUnavailable("ended") from None

    def beat(self, owner: str, *, first: bool) -> list[str] | None:
        """Writes the owner's beat. Returns owners without a recent one; None: it has to take another name.

        `first`: it has not beaten under this name before.
        """
        arguments: list[Argument] = [owner, KEEP_SECONDS, SILENT_MS, int(first)]
        self._write()
        silent = _BEAT.run(self._link, [DELIVERY_OWNERS_KEY, _hash(owner)], arguments)
        return None if silent is None else _names(silent)

    def owners(self) -> list[str]:
        """All of them."""
        self._write()
        return _names(self._link.call("ZRANGE", DELIVERY_OWNERS_KEY, 0, -1))

    def take(self, owner: str, *, ended: bool) -> Estate | None:
        """What an ended owner has left; None: it beats, or nothing is left. `ended`: its process certainly has.

        `done` has to follow; until then others may take it as well.
        """
        self._write()
        keys = [DELIVERY_OWNERS_KEY, _hash(owner)]
        answer = _TAKE.run(self._link, keys, [owner, SILENT_MS, int(ended)])
        if answer is None:
            return None
        sure, entries = answer
        fields = dict(zip(entries[::2], entries[1::2], strict=True))
        notes = tuple(note for name, value in fields.items() if (note := _note(name, value)) is not None)
        return Estate(sure=bool(sure), ended=fields.get(b"dead") == b"1", notes=notes)

    def done(self, owner: str, email_ids: Collection[str], *, whole: bool) -> None:
        """These rows of an ended owner are claimed no more. `whole`: all that it has left is dealt with, and it is not
        looked at again.
        """
        self._write()
        if email_ids:
            self._link.call("HDEL", _hash(owner), *email_ids)
        if whole:
            self._link.call("ZREM", DELIVERY_OWNERS_KEY, owner)

    def held(self, marks: Mapping[str, int]) -> set[str]:
        """Those of these claims (email id → mark) that a process works on, or whose answer waits to be recorded."""
        self._write()
        ids = list(marks)
        arguments: list[Argument] = [DELIVERY_CLAIMS_PREFIX]
        for email_id in ids:
            arguments += [email_id, marks[email_id]]
        return {ids[position - 1] for position in _HELD.run(self._link, [DELIVERY_OWNERS_KEY], arguments)}

    def retire(self, owner: str) -> None:
        """The process ends: what it has left is for others to take at once."""
        self._write()
        _RETIRE.run(self._link, [DELIVERY_OWNERS_KEY, _hash(owner)], [owner])

    def _post(self, owner: str, email_id: str, value: str | None) -> None:
        if not self._posted:
            get_hub().loop.run_callback(self._write)
        self._posted.setdefault(owner, {})[email_id] = value

    def _write(self) -> None:
        """Sends what has been posted. Of a row the last counts."""
        posted, self._posted = self._posted, {}
        for owner, values in posted.items():
            written: list[Argument] = []
            ended: list[Argument] = []
            for email_id, value in values.items():
                if value is None:
                    ended.append(email_id)
                else:
                    written += (email_id, value)
            commands: list[Command] = []
            if written:
                commands.append(("HSET", _hash(owner), *written))
            if ended:
                commands.append(("HDEL", _hash(owner), *ended))
            self._link.post(commands)

    def _hand_over(self, asked: Sequence[tuple[str, Note]]) -> list[bool]:
        self._write()
        values: dict[str, list[Argument]] = {}
        for owner, note in asked:
            values.setdefault(owner, [KEEP_SECONDS]).extend((note.email_id, note.value()))
        allowed = {owner: bool(_HAND_OVER.run(self._link, [_hash(owner)], given)) for owner, given in values.items()}
        return [allowed[owner] for owner, _ in asked]


def _hash(owner: str) -> bytes:
    return DELIVERY_CLAIMS_PREFIX + owner.encode()


def _names(reply: RedisReply) -> list[str]:
    """Names of owners. What no owner has written is none."""
    names = (name.decode("utf-8", "replace") for name in reply)
    return [name for name in names if "\ufffd" not in name]


def _note(name: RedisReply, value: RedisReply) -> Note | None:
    """The note of one field; None for those that say something of the owner, and for what no owner has written."""
    email_id = name.decode("utf-8", "replace")
    found = _NOTE.fullmatch(value)
    if found is None or not is_uuid(email_id):
        return None
    return Note(
        email_id=email_id,
        state=found[1].decode(),
        mark=int(found[2]),
        records_sent=found[3] == b"1",
        message_id=found[4].decode("utf-8", "replace"),
    )
