"""Which regions of a provider take mail now, and what caused a failure that may be the mail's or the region's.

SES's answer 5xx, or none, can be about one mail or about all. It counts as the mail's (an attempt is used up) only
where another mail of the same region has passed within WITNESS_SECONDS and no other mail has failed since. Otherwise
the region is the cause: it rests, and no mail pays for it. After a rest one mail is tried, and the others follow if it
passes; if not, the next rest is twice as long. A single mail that keeps failing does not hold up its
region: as long as all such failures are its own, another mail may be tried at once.

Nor do many mails of one user, such as those that a content filter puts off: as long as no other user's mail has failed,
mails of others may be tried at once; and where those pass, the user's mail rests alone, and an attempt is used up by
each that fails after another user's mail has passed.

What is wrong with the account itself (ACCOUNT_KINDS) one process finds out for all, where they share a pace by way of
Redis (`relay.delivery.pace`); of everything else each process has a separate state.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from relay.core import metrics
from relay.delivery.outcome import Failed, Outcome, Scope, Verdict
from relay.delivery.provider import Handover

log = structlog.get_logger(__name__)

#: Seconds for which a mail that passed shows that its region is well.
WITNESS_SECONDS: Final = 60.0
#: The longest rest, seconds, of what the first one is short: a region away. Longer first rests double to four times.
LONGEST_REST: Final = 300.0
#: A mail that is tried after a rest, and without an outcome for so long (seconds), is no longer waited for.
_PROBE_SECONDS: Final = 180.0
#: Seconds for which others wait while one mail is tried.
_BEHIND_PROBE: Final = 2.0
#: Seconds until the next mail is tried of a user whose mails fail while those of others pass.
_NEXT_SECONDS: Final = 1.0
#: A region to which nothing went for so long (seconds) is not asked whether it rests.
_USED_SECONDS: Final = 600.0
#: Regions and parts of them that are remembered: a customer may write any number of domains into From.
_MOST: Final = 1000
#: No worker waits for longer before it looks for mail to other regions (seconds).
LONGEST_PAUSE: Final = 15.0

#: Classes of failures that every process with the account would meet. Not `clock`: others may have a right one.
ACCOUNT_KINDS: Final = frozenset(("quota", "paused", "suspended", "credentials", "denied"))

Key = tuple[str, ...]


class SharedRests(Protocol):
    """Rests that all processes keep. It sees to throttled calls, too: they slow down all, and nothing rests."""

    def rest(self, region: str, kind: str, first: float, longest: float) -> float | None:
        """Has all processes leave a region alone; for how many seconds. None: no other process knows of it."""

    def resume(self, region: str) -> None:
        """The rest is over. Does not wait for anything."""


@dataclass(slots=True)
class _State:
    """Of a region, or of a part of it: a configuration set, a sender's domain."""

    #: Moments of time.monotonic().
    passed: float = float("-inf")
    rests_until: float = float("-inf")
    used: float = float("-inf")
    rest: float = 0.0
    #: Whether the failures behind the rest may be about their mails after all.
    doubtful: bool = False
    #: Two at most of the mails that failed in a way that may be the region's since one passed: one may be to blame.
    failed: set[str] = field(default_factory=set)
    #: Two at most of the users whose mails these are; and of a region the users whose mails passed last, with the
    #: moments, two at most.
    failed_users: set[str] = field(default_factory=set)
    passed_users: dict[str, float] = field(default_factory=dict)
    #: Of a user: when a mail failed last.
    failed_at: float = float("-inf")
    #: Of a region: the domain whose mail was the first since one passed that may not be sent; empty: none has been.
    denied: str = ""
    #: Until when that domain rests; all that is known of the region, so that work is looked for less often.
    denied_until: float = float("-inf")
    #: The mail that is tried after a rest, and since when.
    probe: str | None = None
    probe_since: float = 0.0


class Regions:
    """The regions that one process sends to. `shared`: how other processes learn of the account's failure."""

    def __init__(self, shared: SharedRests | None = None) -> None:
        self._shared = shared
        self._states: dict[Key, _State] = {}
        #: How many of them rest.
        self._resting = 0

    def wait(
        self, email_id: str, region: str, configuration_set: str | None, sender: str, *, user_id: str | None = None
    ) -> float:
        """Seconds for which this mail had better wait; 0.0: it may go now. Changes nothing.

        `sender`: the address. Ask it before work is done for the mail, and `admit` when it is handed over.
        """
        # perf: 0.1 µs instead of 3 µs, twice for each mail:
        # python -m timeit -s 'from relay.delivery.regions import Regions; r = Regions()' 'r.wait("", "r", None, "")'
        if not self._resting:
            return 0.0
        now = time.monotonic()
        keys = self._keys(region, configuration_set, sender, user_id)
        seconds = max(_wait(self._states[key], email_id, now, user_id or "") for key in keys)
        # Spread, so that those that wait do not all come at once.
        return seconds * random.uniform(1.0, 1.2)  # noqa: S311 - spreads load

    def admit(self, handover: Handover) -> float:
        """As `wait`; where it may go it is the one that is tried, if one is to be.

        `judge` or `withdraw` has to follow then.
        """
        region, configuration_set, sender = handover.region, handover.configuration_set, handover.sender
        seconds = self.wait(handover.email_id, region, configuration_set, sender, user_id=handover.user_id)
        now = time.monotonic()
        for key in self._keys_of(handover):
            state = self._states[key]
            state.used = now
            if not seconds and state.rest:
                state.probe, state.probe_since = handover.email_id, now
        return seconds

    def judge(self, handover: Handover, outcome: Outcome) -> Outcome:
        """The outcome, with the verdict that the other mails of the region give; notes it for those that come."""
        keys = list(self._keys_of(handover))
        now = time.monotonic()
        if not isinstance(outcome, Failed):
            _note_pass(self._states[keys[0]], handover.user_id or "", now)
        if not isinstance(outcome, Failed) or outcome.verdict in (Verdict.PERMANENT, Verdict.PASSING):
            # The region has answered, about this mail.
            for key in keys:
                self._passed(key, handover.email_id, now, witness=not isinstance(outcome, Failed))
            return outcome
        if outcome.kind == "throttled" and self._shared is not None:
            # It answers, and takes the mail at a slower pace.
            for key in keys:
                self._passed(key, handover.email_id, now, witness=False)
            return replace(outcome, pause=outcome.pause * random.uniform(1.0, 2.0))  # noqa: S311 - spreads load
        region = self._states[keys[0]]
        witnessed = now - region.passed <= WITNESS_SECONDS
        if outcome.verdict in (Verdict.EITHER, Verdict.UNCLEAR):
            judged = self._judge_either(handover, outcome, now)
            self._end_probe(keys, handover.email_id)
            return judged
        key = keys[0]
        if outcome.scope is Scope.CONFIGURATION_SET and handover.configuration_set:
            key = _set_key(handover.region, handover.configuration_set)
        elif outcome.scope is Scope.SENDER:
            # A right may be missing for one sender: a customer may write any domain into From.
            sender_key = _sender_key(handover.region, handover.sender)
            region.denied = region.denied or sender_key[-1]
            if witnessed or region.denied == sender_key[-1]:
                key = sender_key
        seconds = self._rest(key, handover.email_id, outcome, now)
        if outcome.scope is Scope.SENDER and not witnessed:
            region.denied_until = now + seconds
        self._end_probe(keys, handover.email_id)
        return replace(outcome, pause=seconds)

    def _judge_either(self, handover: Handover, outcome: Failed, now: float) -> Failed:
        """What is the mail's failure, its user's, or the region's."""
        region = self._states[(handover.region,)]
        user = handover.user_id or ""
        key = _user_key(handover.region, user)
        others_passed = max((at for each, at in region.passed_users.items() if each != user), default=float("-inf"))
        passing = replace(outcome, verdict=Verdict.PASSING, pause=0.0)
        if key in self._states and now - others_passed <= WITNESS_SECONDS:
            # Mails of this user alone have failed before. They say nothing about the mails of others.
            state = self._states[key]
            if others_passed > state.failed_at:
                # The next one of this user is tried soon, one at a time, so that all of them come to an end.
                state.failed_at, state.rest, state.rests_until = now, outcome.pause / 2, now + _NEXT_SECONDS
                self._count()
                return passing
        else:
            if len(region.failed) < 2:
                region.failed.add(handover.email_id)
            if len(region.failed_users) < 2:
                region.failed_users.add(user)
            if now - region.passed <= WITNESS_SECONDS and region.failed == {handover.email_id}:
                return passing
            if now - others_passed > WITNESS_SECONDS or region.failed_users != {user}:
                key = (handover.region,)
        # Another mail is tried first, so that a failure of this one is not taken for the region's, or for the user's.
        seconds = self._rest(key, handover.email_id, outcome, now)
        self._states[key].failed_at = now
        return replace(outcome, verdict=Verdict.NOT_THIS_MAIL, pause=2 * seconds)

    def withdraw(self, handover: Handover) -> None:
        """A mail that was admitted is not handed over after all: another one may be tried."""
        self._end_probe(list(self._keys_of(handover)), handover.email_id)

    def rest_with_others(self, region: str, kind: str, seconds: float) -> None:
        """The account rests, as another process or the account itself says."""
        now = time.monotonic()
        state = self._states.setdefault((region,), _State())
        known = bool(state.rest)
        state.used = now
        state.doubtful, state.rest, state.rests_until = False, seconds, now + seconds
        if not known:
            self._count()
            log.error("region_paused", region=region, part="all", kind=kind, code="", seconds=round(seconds))

    def all_rest(self) -> float:
        """Seconds for which no region takes mail, of those in use; LONGEST_PAUSE at most. 0.0: one does."""
        now = time.monotonic()
        used = [state for key, state in self._states.items() if len(key) == 1 and now - state.used < _USED_SECONDS]
        rests = (max(_wait(state, "", now), state.denied_until - now) for state in used)
        return max(0.0, min(LONGEST_PAUSE, min(rests, default=0.0)))

    def _keys_of(self, handover: Handover) -> Iterator[Key]:
        return self._keys(handover.region, handover.configuration_set, handover.sender, handover.user_id)

    def _keys(self, region: str, configuration_set: str | None, sender: str, user_id: str | None) -> Iterator[Key]:
        """The region's key first, then those of parts that have rested."""
        if (region,) not in self._states:
            self._states[(region,)] = _State()
        yield (region,)
        if len(self._states) == 1:
            return
        parts = [_sender_key(region, sender), _user_key(region, user_id or "")]
        if configuration_set:
            parts.append(_set_key(region, configuration_set))
        yield from (key for key in parts if key in self._states)

    def _rest(self, key: Key, email_id: str, failed: Failed, now: float) -> float:
        """Lets a region or a part of it rest; for how many seconds."""
        if key not in self._states and len(self._states) >= _MOST:
            self._forget_part()
        state = self._states.setdefault(key, _State())
        doubtful = failed.verdict is not Verdict.NOT_THIS_MAIL
        if now < state.rests_until and state.probe != email_id:
            state.doubtful = state.doubtful and doubtful
            return state.rests_until - now  # one of those that were on their way when it began
        state.doubtful = doubtful
        longest = max(LONGEST_REST, 4 * failed.pause)
        seconds = min(longest, max(failed.pause, 2 * state.rest))
        if self._shared is not None and len(key) == 1 and failed.kind in ACCOUNT_KINDS:
            seconds = self._shared.rest(key[0], failed.kind, failed.pause, longest) or seconds
        state.rest = seconds
        state.rests_until = now + seconds
        self._count()
        alone = doubtful and (len(state.failed) == 1 or key[1:2] == ("user",))
        level = logging.WARNING if alone or failed.kind == "throttled" else logging.ERROR
        more = {"action": failed.action} if failed.action else {}
        log.log(
            level,
            "region_paused",
            **_named(key),
            kind=failed.kind,
            code=failed.code,
            seconds=round(state.rest),
            **more,
        )
        return state.rest

    def _forget_part(self) -> None:
        """Makes room: the part that is known for longest is tried again, if a mail of it comes."""
        oldest = next((key for key in self._states if len(key) > 1), None)
        if oldest is not None:
            del self._states[oldest]

    def _passed(self, key: Key, email_id: str, now: float, *, witness: bool) -> None:
        state = self._states[key]
        if witness:
            state.passed = now
            state.failed.clear()
            state.failed_users.clear()
            state.denied, state.denied_until = "", float("-inf")
        else:
            state.failed.discard(email_id)
        tried = state.probe == email_id
        if tried:
            state.probe = None
        # A mail that was on its way when the account began to fail proves nothing for later ones.
        if state.rest and (tried or now >= state.rests_until or (witness and state.doubtful)):
            state.rest, state.rests_until = 0.0, float("-inf")
            self._count()
            log.info("region_resumed", **_named(key))
            if self._shared is not None and len(key) == 1:
                self._shared.resume(key[0])
        if len(key) > 1 and not state.rest:
            del self._states[key]

    def _end_probe(self, keys: list[Key], email_id: str) -> None:
        for key in keys:
            state = self._states.get(key)  # its part may have been forgotten
            if state is not None and state.probe == email_id:
                state.probe = None

    def _count(self) -> None:
        self._resting = sum(1 for state in self._states.values() if state.rest)
        metrics.DELIVERY_PAUSED_REGIONS.value = self._resting


def _wait(state: _State, email_id: str, now: float, user: str | None = None) -> float:
    if not state.rest:
        return 0.0
    if state.probe is not None and state.probe != email_id and now - state.probe_since < _PROBE_SECONDS:
        return max(_BEHIND_PROBE, state.rests_until - now)
    if now >= state.rests_until or (state.doubtful and len(state.failed) == 1 and email_id not in state.failed):
        return 0.0
    if user is not None and state.doubtful and len(state.failed_users) == 1 and user not in state.failed_users:
        return 0.0
    return state.rests_until - now


def _sender_key(region: str, sender: str) -> Key:
    return (region, "domain", sender.rpartition("@")[2].lower())


def _user_key(region: str, user: str) -> Key:
    return (region, "user", user)


def _note_pass(region: _State, user: str, now: float) -> None:
    region.passed_users.pop(user, None)
    region.passed_users[user] = now
    if len(region.passed_users) > 2:
        del region.passed_users[next(iter(region.passed_users))]


def _set_key(region: str, configuration_set: str) -> Key:
    return (region, "configuration_set", configuration_set)


def _named(key: Key) -> dict[str, str]:
    """For a log line: which region, and which part of it."""
    return {"region": key[0], "part": key[1] if len(key) > 1 else "all"}
