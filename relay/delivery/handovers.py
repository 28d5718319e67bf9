"""The claims of this process, how far each is, and what others have left behind (docs/guarantees.md, section 9).

In memory, and in Redis for the processes that come after: a process that ends leaves there which of its mails had not
been handed over. Those go back to the queue at once. What the provider has accepted is recorded for that process.
Without Redis all this is unknown to others, and a claim is given up when its lease is over.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Final

import gevent
import structlog

from relay.core import metrics
from relay.core.errors import PostgresRefused, PostgresUnavailable, RedisUnavailable, Unavailable, Unstorable
from relay.delivery.send_events import sent_event
from relay.postgres.ended_rows import EndedRow
from relay.postgres.left_rows import Left, LeftRows, mark_of, microseconds
from relay.postgres.outgoing import Outgoing
from relay.redis.claim_states import CLAIMED, HANDING_OVER, SENT, SILENT_MS, ClaimStates, Note

log = structlog.get_logger(__name__)

#: Seconds between two beats.
BEAT_SECONDS: Final = 5.0
#: Seconds from a beat for which no other process takes this one for ended, with a margin for a call on its way.
_SAFE_SECONDS: Final = SILENT_MS / 1000 - 10.0
#: Seconds for which a provider's own event `sent` is waited for where one is to come.
EVENT_SECONDS: Final = 180.0
#: Answers, and claims, whose record failed and that are kept in memory. Redis has them too.
_MOST_KEPT: Final = 10_000
#: Rows that a provider has, and that Postgres refuses to record. Where there are more, each keeps its place: no mail
#: leaves of which so many answers would have to be kept.
_MOST_REFUSED: Final = 1_000
#: Seconds after which one of those is tried again: the first time, and at most.
_REFUSED_SECONDS: Final = (5.0, 60.0)
#: Seconds for which a row waits at most of which it can't be recorded, time after time, what became of it.
_LONGEST_WAIT: Final = 900


@dataclass(slots=True)
class _OwnClaim:
    mark: datetime
    #: The name under which Redis knows of it; empty: it is not in Redis.
    owner: str
    state: str = CLAIMED
    records_sent: bool = True
    message_id: str = ""


@dataclass(slots=True)
class _Kept:
    """What a provider has, as it is to be recorded, in memory alone: Redis has `claim`."""

    row: EndedRow
    claim: _OwnClaim
    #: When it is tried again (monotonic), and the seconds until then.
    at: float
    pause: float


@dataclass(slots=True)
class _Settled:
    """Rows that are dealt with, and how many of them were given back. `failed`: why not all of them are."""

    email_ids: list[str] = field(default_factory=list)
    count: int = 0
    failed: PostgresUnavailable | None = None


class Handovers:
    """Asked at each step of a delivery; `watch` looks after what was left behind."""

    def __init__(
        self, states: ClaimStates, outgoing: Outgoing, left: LeftRows, *, service: str, index: int, provider: str
    ) -> None:
        """`service`, `index`: the service and which of its processes this is. `provider`: its name, for events."""
        self._states = states
        self._outgoing = outgoing
        self._left = left
        self._provider = provider
        #: The processes that had this place before have ended: the master has waited for them.
        self._place = f"{service}:{index}:"
        self._owner = self._new_owner()
        #: Whether this name is in Redis.
        self._named = False
        self._beat = float("-inf")
        self._succeeded = False
        self._claims: dict[str, _OwnClaim] = {}
        #: Those of which it could not be recorded what became of them.
        self._left_over: dict[str, _OwnClaim] = {}
        #: Those that a provider has, of which Postgres refuses to record it; the longest untried first.
        self._refused: dict[str, _Kept] = {}
        #: How often that has been so, of rows of which nothing has been recorded since.
        self._unrecorded: dict[str, int] = {}

    # The steps of a delivery.

    def state(self, email_id: str) -> str:
        """How far a claim is: CLAIMED, HANDING_OVER or SENT; empty where there is no claim."""
        claim = self._claims.get(email_id)
        return "" if claim is None else claim.state

    def begin(self, email_id: str) -> None:
        """A row has been claimed."""
        mark = self._outgoing.mark(email_id)
        if mark is None:
            return
        # What is written under a name without a recent beat is not taken up.
        told = self._states.up and time.monotonic() - self._beat < _SAFE_SECONDS
        claim = self._claims[email_id] = _OwnClaim(mark, self._owner if told else "")
        self._post(email_id, claim)

    def may_hand_over(self, email_id: str, *, records_sent: bool) -> bool:
        """Whether the provider may be called for this row, to be asked right before.

        False: it took too long, or this process stood still: another worker may have the row soon, or has it. Or Redis
        has the claim and does not answer now: the next claim is not written there.
        """
        claim = self._claims.get(email_id)
        if claim is None or not self._outgoing.may_hand_over(email_id):
            return False
        claim.records_sent = records_sent
        if not self._states.up and not claim.owner:
            claim.state = HANDING_OVER
            return True
        told, claim.owner = bool(claim.owner), claim.owner or self._owner
        claim.state = HANDING_OVER
        try:
            allowed = self._states.hand_over(claim.owner, _note(email_id, claim))
        except RedisUnavailable:
            # Redis may go on saying that the row was not handed over. It may be full, and take nothing for long: the
            # next claims are not written there, until it has taken a beat.
            allowed = not told
            self._beat = float("-inf")
        else:
            if not allowed:
                self._say_alive()
        if not allowed:
            claim.state = CLAIMED
        return allowed

    def answered(self, email_id: str, message_id: str | None) -> None:
        """The provider has answered. `message_id`: its name of the mail; None: it does not have it."""
        claim = self._claims.get(email_id)
        if claim is not None:
            claim.state = CLAIMED if message_id is None else SENT
            claim.message_id = message_id or ""
            self._post(email_id, claim)

    def end(self, email_id: str) -> None:
        """What became of the row is recorded."""
        claim = self._claims.pop(email_id, None)
        self._unrecorded.pop(email_id, None)
        if claim is not None:
            self._refused.pop(email_id, None)
            if claim.owner:
                self._states.post_end(claim.owner, email_id)

    def keep(self, row: EndedRow) -> bool:
        """The provider has the mail, and Postgres refuses to record it: `row` is tried again, until it is recorded.

        Its claim stays, so that no other process takes the mail up. False: too many are kept, and nothing is done.
        """
        claim = self._claims.get(row.email_id)
        if claim is None or (len(self._refused) >= _MOST_REFUSED and row.email_id not in self._refused):
            return False
        del self._claims[row.email_id]
        pause, _ = _REFUSED_SECONDS
        self._refused[row.email_id] = _Kept(row, claim, at=time.monotonic() + pause, pause=pause)
        return True

    def kept(self, email_id: str) -> EndedRow | None:
        """What is to be recorded of a mail that the provider has, where Postgres refused it; None: nothing is."""
        refused = self._refused.get(email_id)
        return None if refused is None else refused.row

    def leave(self, email_id: str) -> None:
        """What became of the row can't be recorded now: it is tried again, until it is. Does nothing after `end`."""
        claim = self._claims.pop(email_id, None)
        if claim is not None and len(self._left_over) < _MOST_KEPT:
            self._left_over[email_id] = claim
            self._unrecorded[email_id] = self._unrecorded.pop(email_id, 0) + 1
            if len(self._unrecorded) > _MOST_KEPT:
                del self._unrecorded[next(iter(self._unrecorded))]

    # What was left behind.

    def introduce(self) -> None:
        """The first beat, to be called before anything is claimed: what is claimed ahead of it is not in Redis."""
        self._say_alive()

    def watch(self) -> None:
        """Beats, and deals with what this process and ended ones have left; never returns."""
        while True:
            with suppress(PostgresUnavailable, RedisUnavailable):  # all of it is there when they are back
                self.look()
            gevent.sleep(BEAT_SECONDS)

    def look(self) -> None:
        """One round. Raises PostgresUnavailable and RedisUnavailable."""
        until = time.monotonic() + BEAT_SECONDS
        silent = self._say_alive()
        failed: Unavailable | None = self._settle()
        failed = self._give_back_lost() or failed
        if silent is None:
            if failed is not None:
                raise failed
            return
        self._write_again()
        dead = [(owner, False) for owner in silent if owner != self._owner]
        if not self._succeeded:
            before = [name for name in self._states.owners() if name.startswith(self._place) and name != self._owner]
            dead = [*((owner, True) for owner in before), *dead]
        self._succeeded = True
        for owner, ended in dead:
            if time.monotonic() > until:
                self._succeeded = self._succeeded and not ended
                break
            # What can't be taken over keeps no other from it.
            unsettled: Unavailable | None
            try:
                unsettled = self._take_over(owner, ended=ended)
            except RedisUnavailable as error:
                unsettled = error
            if unsettled is not None:
                failed = unsettled
                self._succeeded = self._succeeded and not ended
        if failed is not None:
            raise failed

    def close(self) -> None:
        """The process ends: what it has not finished is for others to take at once."""
        with suppress(RedisUnavailable):  # they take it after SILENT_MS without a beat
            self._states.retire(self._owner)
        self._give_back_lost()

    def _say_alive(self) -> list[str] | None:
        """Beats. Returns the owners that no longer beat; None where Redis does not say."""
        try:
            began = time.monotonic()
            silent = self._states.beat(self._owner, first=not self._named)
            if silent is None:
                # It was taken for ended, or Redis has lost it: what it has written there counts no more.
                log.warning("delivery_owner_renewed")
                self._owner, self._named = self._new_owner(), False
                silent = self._states.beat(self._owner, first=True)
        except RedisUnavailable:
            return None
        self._beat, self._named = began, True
        return silent

    def _give_back_lost(self) -> PostgresUnavailable | None:
        """Claims that this process does not know to have; an error where some of them can't be given back now."""
        try:
            count = self._outgoing.give_back_lost()
        except PostgresUnavailable as error:
            return error
        if count:
            log.warning("lost_claims_put_back", count=count)
            metrics.DELIVERIES.labels("abandoned").inc(count)
        return None

    def _write_again(self) -> None:
        """Writes claims that Redis may not have: it was away or not asked yet, or has lost what was posted.

        Of a claim under an earlier name others may have the row: only what the provider has said of it is written.
        """
        for email_id, claim in self._claims.items():
            if claim.owner in ("", self._owner) or claim.state == SENT:
                claim.owner = self._owner
                self._post(email_id, claim)
        kept = ((email_id, refused.claim) for email_id, refused in self._refused.items())
        for email_id, claim in chain(self._left_over.items(), kept):
            if not claim.owner or (claim.state == SENT and claim.owner != self._owner):
                claim.owner = self._owner
                self._post(email_id, claim)

    def _settle(self) -> PostgresUnavailable | None:
        """Records what could not be recorded; an error where something still can't be."""
        failed = self._try_refused()
        if not self._left_over:
            return failed
        left_over = dict(self._left_over)
        notes = [_note(email_id, claim) for email_id, claim in left_over.items()]
        settled = self._record(notes, sure=True, ended=True)
        for email_id in settled.email_ids:
            del self._left_over[email_id]
            owner = left_over[email_id].owner
            if owner:
                self._states.post_end(owner, email_id)
        return settled.failed or failed

    def _try_refused(self) -> PostgresUnavailable | None:
        """Tries what Postgres has refused, each in a separate statement; an error where something still can't be."""
        failed: PostgresUnavailable | None = None
        until = time.monotonic() + BEAT_SECONDS / 2
        _, longest = _REFUSED_SECONDS
        for email_id, refused in list(self._refused.items()):
            now = time.monotonic()
            if now > until:
                break
            if refused.at > now or email_id not in self._refused:
                continue
            # Whatever becomes of it, the others come before it the next time.
            self._refused[email_id] = self._refused.pop(email_id)
            refused.at = now + refused.pause
            try:
                self._outgoing.ended(refused.row, alone=True)
            except PostgresRefused as error:
                refused.pause, failed = min(longest, 2 * refused.pause), error
            except PostgresUnavailable as error:
                return error
            except Exception as error:  # one that Postgres can't hold, or a bug: it keeps no other from it
                if not isinstance(error, Unstorable):
                    log.exception("unexpected_error", email_id=email_id)
                refused.pause, failed = min(longest, 2 * refused.pause), PostgresRefused()
            else:
                self._refused.pop(email_id, None)
                if refused.claim.owner:
                    self._states.post_end(refused.claim.owner, email_id)
        return failed

    def _take_over(self, owner: str, *, ended: bool) -> PostgresUnavailable | None:
        """Deals with what an ended process has left; an error where something can't be dealt with now."""
        estate = self._states.take(owner, ended=ended)
        if estate is None:
            return None
        settled = self._record(estate.notes, sure=estate.sure, ended=estate.ended)
        log.warning("delivery_taken_over", count=settled.count, claims=len(estate.notes))
        self._states.done(owner, settled.email_ids, whole=settled.failed is None)
        return settled.failed

    def _record(self, notes: Sequence[Note], *, sure: bool, ended: bool) -> _Settled:
        """Records the provider's answers, and gives back the other claims.

        A row that is locked, or that the server refuses, keeps no other from it.
        """
        settled = _Settled()
        until = time.monotonic() + BEAT_SECONDS
        # In any order: one that takes all of the time must not always be the first.
        notes = random.sample(notes, len(notes))
        for note in notes:
            if note.state == SENT:
                event = sent_event(note.email_id, self._provider, note.message_id) if note.records_sent else None
                try:
                    self._outgoing.sent(note.email_id, event)
                    settled.email_ids.append(note.email_id)
                except PostgresUnavailable as error:
                    settled.failed = error
                    if time.monotonic() > until:
                        break
                except Unstorable:
                    settled.failed = PostgresRefused()
        rows = list(_to_give_back(notes, self._unrecorded, sure=sure, ended=ended))
        given = {row.email_id for row in rows}
        try:
            self._give_back(rows, settled)
        except PostgresUnavailable as error:
            settled.failed = error
            for row in rows:
                if time.monotonic() > until:
                    return settled
                with suppress(PostgresUnavailable):
                    self._give_back([row], settled)
        settled.email_ids += [note.email_id for note in notes if note.state != SENT and note.email_id not in given]
        return settled

    def _give_back(self, rows: Sequence[Left], settled: _Settled) -> None:
        count = self._left.give_back(rows) if rows else 0
        settled.count += count
        settled.email_ids += [row.email_id for row in rows]
        metrics.DELIVERY_UNCLEAR.labels("found").inc(sum(row.unclear for row in rows))
        metrics.DELIVERIES.labels("abandoned").inc(count)

    def _post(self, email_id: str, claim: _OwnClaim) -> None:
        if claim.owner:
            self._states.post(claim.owner, _note(email_id, claim))

    def _new_owner(self) -> str:
        return self._place + secrets.token_hex(8)


def _to_give_back(notes: Sequence[Note], unrecorded: Mapping[str, int], *, sure: bool, ended: bool) -> Iterator[Left]:
    """Claims that are over: all of a process that has ended, else those that it had not begun to hand over.

    `unrecorded`: how often it could not be recorded what became of a row. Once is an outage; what goes on is about the
    row, which waits longer each time.
    """
    for note in notes:
        if note.state == SENT:
            continue
        unclear = not (sure and note.state == CLAIMED)
        if ended or not unclear:
            waits = EVENT_SECONDS if unclear and not note.records_sent else 0.0
            times = unrecorded.get(note.email_id, 0)
            again = float(min(_LONGEST_WAIT, 2 ** min(times, 30))) if times > 1 else 0.0
            yield Left(
                email_id=note.email_id,
                mark=mark_of(note.mark),
                seconds=max(waits, again),
                unclear=unclear,
            )


def _note(email_id: str, claim: _OwnClaim) -> Note:
    return Note(
        email_id=email_id,
        state=claim.state,
        mark=microseconds(claim.mark),
        records_sent=claim.records_sent,
        message_id=claim.message_id,
    )
