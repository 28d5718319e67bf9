"""The rate of one account, shared by all processes of all machines: `relay.core.allowance` as scripts in Redis.

One hash an account holds everything. Its times are Redis's own (unix, seconds), so that clocks of machines need not
agree. A hash that was lost, by a restart or a failover, begins once the permits are over that processes may still hold,
as far as the one that asks first knows of any; otherwise one HORIZON later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.core import allowance
from relay.core.allowance import Grant
from relay.redis.keys import PACE_PREFIX
from relay.redis.link import RedisLink, Script
from relay.redis.protocol import Argument

#: Seconds after which what was not used is forgotten.
_KEPT: Final = 86_400
#: Seconds for which one mail is waited for that is tried after a rest, and for which others are put off meanwhile.
PROBE_SECONDS: Final = 70
BEHIND_PROBE: Final = 2
#: A process that comes back from its time without Redis is not the last one: for so long all keep to one share.
MIXED_SECONDS: Final = 2

_NOW: Final = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function text(number) return string.format('%.17g', number) end
"""

_CONSTANTS: Final = "\n".join(
    f"local {name} = {getattr(allowance, name)!r}"
    for name in (
        *("MARGIN", "GRAIN", "MANY", "WINDOW", "CAP", "CREDIT", "HORIZON", "FARTHEST", "NEAR"),
        *("ASK_SECONDS", "ASK_AGAIN_SECONDS", "ANSWER_SECONDS", "RAISE", "LEAST"),
        *("MUCH", "ENOUGH", "PERIOD", "LITTLE", "FEW_CALLS", "MOSTLY", "SPARED_SECONDS"),
    )
)

_RESERVE: Final = Script(
    f"{_CONSTANTS}\n{_NOW}\nlocal PROBE, BEHIND = {PROBE_SECONDS}, {BEHIND_PROBE}"
    f"\nlocal MIXED, KEPT = {MIXED_SECONDS}, {_KEPT}"
    + """
-- KEYS: the account. ARGV: now or '', fallback, shares, passed, throttled, 1 after a time without Redis, lead, seconds
-- for which others may hold permits that this server knows nothing of, recipients of void permits, then weights
-- Returns now, ask, rate, lowered, left, rest, kind, again, then the moments; numbers as text
local held = redis.call('HMGET', KEYS[1], 'rate', 'left', 'off', 'asked', 'turn', 'points', 'factor', 'since', 'calls',
  'throttled', 'raised', 'until', 'probe', 'kind', 'mixed', 'seen', 'tried', 'ratio', 'before', 'in_vain', 'spared',
  'first')
local never = -1e300
local rate, left, off = tonumber(held[1]) or 0, tonumber(held[2]) or -1, held[3] or ''
local lead, forgotten = tonumber(ARGV[7]), now + math.max(HORIZON, tonumber(ARGV[8]))
local asked, turn = tonumber(held[4]) or never, tonumber(held[5]) or forgotten
local factor, since, calls = tonumber(held[7]) or 1, tonumber(held[8]) or never, tonumber(held[9]) or 0
local throttled, raised, points = tonumber(held[10]) or 0, tonumber(held[11]) or never, held[6] or ''
local paused, probe, kind = tonumber(held[12]) or 0, tonumber(held[13]) or 0, held[14] or ''
local mixed = tonumber(held[15]) or 0
local tried, ratio, before = tonumber(held[17]) or 0, tonumber(held[18]) or 1, tonumber(held[19]) or 1
local in_vain, spared, first_asked = tonumber(held[20]) or 0, tonumber(held[21]) or never, tonumber(held[22]) or -never
if (tonumber(held[16]) or now) > now + 1 then
  -- The clock was put back: another server's, after a failover. Moments of the other clock mean nothing.
  asked, turn, since, raised, points, mixed, spared = never, forgotten, never, never, '', 0, never
  if paused > 0 then paused = now end
  probe = 0
end
local fallback, shares = tonumber(ARGV[2]), tonumber(ARGV[3])
local more_passed, more_throttled = tonumber(ARGV[4]), tonumber(ARGV[5])
if ARGV[6] == '1' then mixed = now + MIXED end
if left >= 0 then left = left + tonumber(ARGV[9]) end

local ask = 0
if now - asked >= (rate > 0 and ASK_SECONDS or ASK_AGAIN_SECONDS) then
  ask, asked, first_asked = 1, now, math.min(now, first_asked)
end

local lowered = 0
calls, throttled = calls + more_passed + more_throttled, throttled + more_throttled
local period, part = now - since, throttled > 0 and throttled / calls or 0
if period >= PERIOD or (period >= 1 and throttled >= ENOUGH and part >= MUCH) then
  if part <= LITTLE then
    tried = 0
  elseif now >= spared or part > in_vain * 1.5 + LITTLE then
    if tried > 0 and part < MOSTLY and part > (math.max(0, 1 - (1 - tried) / ratio) + tried) / 2 then
      factor, tried, in_vain, spared = before, 0, part, now + SPARED_SECONDS
    else
      if tried == 0 then before = factor end
      ratio, tried = math.max(calls >= FEW_CALLS and 0.5 or 0.9, 1 - part), part
      factor, lowered = math.max(LEAST, factor * ratio), 1
    end
  end
  calls, throttled, since = 0, 0, now
end
if more_passed > 0 and factor < 1 then factor = math.min(1, factor + RAISE * math.min(1, now - raised)) end
raised = now

local since_asked, used, rest, reason, again, moments = now - asked, 0, 0, '', 0, {}
local until_asked = since_asked < ANSWER_SECONDS and 1 or math.max(1, ASK_SECONDS - since_asked)
local most = #ARGV - 9
if off ~= '' then
  rest, reason = until_asked, off
elseif paused > now then
  rest, reason = paused - now, kind
elseif paused > 0 and probe > now then
  rest, reason = math.min(BEHIND, probe - now), kind
elseif rate == 0 and now - first_asked < ANSWER_SECONDS then
  again = 0.1
else
  if paused > 0 then
    -- After a rest one mail of all processes is tried, and the others follow if it passes.
    most, probe = math.min(1, most), now + PROBE
  end
  local whole = rate > 0 and rate or fallback
  if mixed > now then whole = whole / shares end
  used = whole * factor * MARGIN
  local cap, grain = math.max(1, math.floor(whole * CAP)), whole >= MANY and GRAIN or 0
  -- "moment recipients;" for each point of the window, then "=" and the sum.
  -- perf: of a hundred points the first ones alone are read and the last ones written: a request takes 0.11 ms of Redis
  -- at 500 a second instead of 0.33 (python -m scripts.benchmark.pace --simulated 60).
  local body, sum, sum_at = points, 0, string.find(points, '=', 1, true)
  if sum_at then
    body, sum = string.sub(points, 1, sum_at - 1), tonumber(string.sub(points, sum_at + 1))
  else
    for weight in string.gmatch(points, ' (%d+);') do sum = sum + tonumber(weight) end
  end
  -- The last point of the text may get more: it is the first of those that are written anew.
  local last_moment, last_weight = string.match(string.sub(body, -64), '([^; ]+) (%d+);$')
  local fresh, first, place, stop = {}, 1, 1, #body
  if last_moment then
    fresh[1] = {tonumber(last_moment), tonumber(last_weight)}
    stop = stop - #last_moment - #last_weight - 2
  end
  -- The point at a place of the text, or behind it the n-th that is written anew, and where the next one is.
  local function point(at, n)
    if at <= stop then
      local moment, weight, behind = string.match(body, '^(%S+) (%d+);()', at)
      return tonumber(moment), tonumber(weight), behind, n
    end
    if fresh[n] then return fresh[n][1], fresh[n][2], at, n + 1 end
  end
  for position = 1, most do
    local weight = tonumber(ARGV[9 + position])
    local begin = math.max(now + lead, turn)
    local moment = begin
    local earliest, recipients, at, n = point(place, first)
    while earliest and earliest <= moment - WINDOW do
      sum, place, first = sum - recipients, at, n
      earliest, recipients, at, n = point(place, first)
    end
    local others = sum
    while others + weight > cap and earliest do
      moment, others = earliest + WINDOW, others - recipients
      earliest, recipients, at, n = point(at, n)
    end
    if #moments > 0 and moment > now + 2 * lead + HORIZON then break end
    if moment > now + FARTHEST then
      rest, reason = moment - now - NEAR, 'far'
      break
    end
    if left >= 0 and left < weight then
      if #moments == 0 then rest, reason = until_asked, left > 0 and 'short' or 'quota' end
      break
    end
    if left > 0 then left = left - weight end
    turn = math.max(begin, moment - (whole < MANY and CREDIT or 0)) + weight / used
    local last = fresh[#fresh]
    if #fresh >= first and moment - last[1] < grain then
      moment, last[2] = math.max(now + lead, last[1]), last[2] + weight
    else
      fresh[#fresh + 1] = {moment, weight}
    end
    sum = sum + weight
    moments[#moments + 1] = text(moment - now)
  end
  local kept = {string.sub(body, place, stop)}
  for n = first, #fresh do kept[#kept + 1] = text(fresh[n][1]) .. ' ' .. fresh[n][2] .. ';' end
  points = table.concat(kept) .. '=' .. sum
  local last = fresh[#fresh]
  again = math.max(0, (last and math.max(turn, last[1]) or turn) - now - NEAR - lead)
end
if rest > 0 then again = reason == 'short' and 0 or rest end
redis.call('HSET', KEYS[1], 'left', left, 'asked', text(asked), 'turn', text(turn), 'points', points,
  'factor', text(factor), 'since', text(since), 'calls', calls, 'throttled', throttled, 'raised', text(raised),
  'until', text(paused), 'probe', text(probe), 'mixed', text(mixed), 'seen', text(now), 'tried', text(tried),
  'ratio', text(ratio), 'before', text(before), 'in_vain', text(in_vain), 'spared', text(spared),
  'first', text(first_asked))
redis.call('EXPIRE', KEYS[1], KEPT)
return {text(now), ask, text(used), lowered, left, text(rest), reason, text(again), unpack(moments)}
"""
)

_REST: Final = Script(
    _NOW
    + f"local PROBE, KEPT = {PROBE_SECONDS}, {_KEPT}"
    + """
-- KEYS: the account. ARGV: now or '', seconds of a first rest, of the longest, why. Returns the seconds of this one
local held = redis.call('HMGET', KEYS[1], 'until', 'rest', 'probe')
local paused, rest = tonumber(held[1]) or 0, tonumber(held[2]) or 0
-- One of those that were on their way when it began makes it no longer.
if paused > now and paused - now <= rest then return text(paused - now) end
rest = math.min(tonumber(ARGV[3]), math.max(tonumber(ARGV[2]), 2 * rest))
redis.call('HSET', KEYS[1], 'until', text(now + rest), 'rest', text(rest), 'probe', 0, 'kind', ARGV[4])
redis.call('EXPIRE', KEYS[1], KEPT)
return text(rest)
"""
)

_OCTETS: Final = Script(
    f"{_NOW}\nlocal RATE = {allowance.OCTETS_A_SECOND!r}"
    + """
-- KEYS: the account. ARGV: now or '', octets. Returns seconds
local moment = tonumber(redis.call('HGET', KEYS[1], 'octets')) or now
-- From so far ahead it is of another clock: a mail takes a second or two.
if moment < now or moment > now + 3600 then moment = now end
redis.call('HSET', KEYS[1], 'octets', text(moment + tonumber(ARGV[2]) / RATE))
return text(moment - now)
"""
)


class SharedAllowance:
    """An account's allowance in Redis. Every method raises RedisUnavailable.

    `now` is for tests, whose clock it is; otherwise Redis's own counts.
    """

    def __init__(self, link: RedisLink, account: str, *, fallback: float, shares: int) -> None:
        """`account`: provider and region. `fallback`, `shares`: see `relay.core.allowance.Allowance`."""
        self._link = link
        self._keys = (PACE_PREFIX + account.encode("utf-8", "surrogatepass"),)
        self._fallback = fallback
        self._shares = shares

    def reserve(
        self,
        weights: Sequence[int],
        *,
        passed: int,
        throttled: int,
        void: int = 0,
        lead: float = 0.0,
        returned: bool = False,
        held: float = 0.0,
        now: float | None = None,
    ) -> Grant:
        """As `Allowance.reserve`. `returned`: this process has had its share without Redis until now. `held`: seconds
        for which processes may hold permits, which counts where the server has forgotten them.
        """
        arguments: list[Argument] = [_time(now), repr(self._fallback), self._shares, passed, throttled, int(returned)]
        arguments += [repr(lead), repr(held), void]
        answer = _RESERVE.run(self._link, self._keys, [*arguments, *weights])
        clock, ask, rate, lowered, left, rest, kind, again, *moments = answer
        return Grant(
            float(clock),
            tuple(map(float, moments)),
            again=float(again),
            ask=bool(ask),
            rate=float(rate),
            lowered=bool(lowered),
            left=left,
            rest=float(rest),
            kind=kind.decode(),
        )

    def learn(self, rate: float, left: int, off: str) -> None:
        """As `Allowance.learn`."""
        self._link.call("HSET", *self._keys, "rate", repr(rate), "left", left, "off", off)

    def rest(self, kind: str, first: float, longest: float, *, now: float | None = None) -> float:
        """No process gets permits for so many seconds, `first` or twice the rest before, `longest` at most."""
        return float(_REST.run(self._link, self._keys, [_time(now), repr(first), repr(longest), kind]))

    def resume(self) -> None:
        """A mail has passed after a rest: it is over for all."""
        self._link.call("HDEL", *self._keys, "until", "rest", "probe", "kind")

    def wait_for_octets(self, octets: int, *, now: float | None = None) -> float:
        """As `Allowance.wait_for_octets`."""
        return float(_OCTETS.run(self._link, self._keys, [_time(now), octets]))


def _time(now: float | None) -> str:
    return "" if now is None else repr(now)
