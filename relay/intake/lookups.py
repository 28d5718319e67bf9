"""Cache-aside, in one place: asks Redis, then Postgres, and writes back what it learned.

How old an answer can be. A key: revoked in OpenSend's dashboard, which deletes the shared entry, it ends with the next
message; deleted in Postgres alone, within a minute, whatever OpenSend's own entry says. A look-up at the moment at
which it is deleted can bring the entry back, for some two seconds: what was written back is compared with Postgres once
more. A suppression that is added counts at once (the INSERT looks again); one that is removed counts within a minute.
An address or a key of one user never answers for another's: the user is part of every key.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Final, TypeVar, cast

import structlog
from gevent.event import AsyncResult

from relay.core.api_keys import KeyRecord
from relay.core.errors import PostgresUnavailable, Unavailable
from relay.core.frozen import frozen
from relay.core.records import ApiKey
from relay.core.supervision import run_once
from relay.postgres.store import Store
from relay.redis import webhook_wakes
from relay.redis.cache import Cache
from relay.redis.claims import Claim, Holder

_T = TypeVar("_T")
log = structlog.get_logger(__name__)

#: How often last_used_at of one key is written, and how long uses are gathered before, in seconds.
_TOUCH_INTERVAL: Final = 60.0
_TOUCH_DELAY: Final = 1.0
#: How long after a key was written to the shared cache it is looked up again; seconds.
_SECOND_LOOK_DELAY: Final = 1.0
#: Beyond this many keys the oldest uses are forgotten; SQL knows them anyway.
_MAX_TOUCHED: Final = 10_000


@frozen
class Screening:
    """What is known about one message just before it is stored."""

    #: The key as it is now; None: revoked, the message must be refused. Nothing is claimed then.
    key: ApiKey | None
    #: Recipients (comparison form) that must not get mail → reason. Not empty: nothing is claimed.
    suppressed: Mapping[str, str]
    #: Recipients that another transaction of the same message has claimed before. All others are claimed by this one.
    held: Mapping[str, Holder]


class Lookups:
    """What the accept path asks. Right without Redis, only slower.

    Raises PostgresUnavailable where Postgres is needed and does not answer.
    """

    def __init__(self, store: Store, cache: Cache, *, write_back_keys: bool = True) -> None:
        """`write_back_keys`: not so in a process that may have ended before it could look at a key a second time."""
        self._store = store
        self._cache = cache
        self._flights: dict[Hashable, AsyncResult[object]] = {}
        self._uses = _KeyUses(store)
        self._write_backs = _WriteBacks(store, cache) if write_back_keys else None

    def api_key(self, token_hash: str) -> ApiKey | None:
        """The key for AUTH, or None: unknown, or without a user."""
        cached = self._cache.find_key(token_hash)
        if cached.key is not None or cached.unknown:
            return cached.key
        return self._fetch_key(token_hash)

    def screen(
        self,
        token_hash: str,
        user_id: str,
        recipients: Sequence[str],
        *,
        claim: Claim | None = None,
        intents: Sequence[str] = (),
        certain: bool = False,
    ) -> Screening:
        """One round trip: is the key still good, is any recipient suppressed, has any of them got this message already.

        `recipients` in comparison form. `intents`: ids of the rows that will need a job (empty in polling mode).
        `certain`: ask Postgres about recipients that the cache knows nothing about. Otherwise that is left to
        `Store.insert`, whose statement asks the same at no extra round trip (an outcome `Suppressed`).
        """
        screened = self._cache.screen(token_hash, user_id, recipients, claim=claim, intents=intents)
        suppressed: Mapping[str, str]
        held: Mapping[str, Holder]
        if screened is None:
            key = self._fetch_key(token_hash)
            doubtful: Sequence[str] = recipients if certain else ()
            suppressed, held = {}, {}
        else:
            cached = screened.key
            key = cached.key if cached.key is not None or cached.unknown else self._fetch_key(token_hash)
            doubtful = (*screened.listed, *screened.unknown) if certain else screened.listed
            suppressed, held = screened.suppressed, screened.held
        if key is not None and key.user_id != user_id:
            key = None  # not the user whose suppressions were looked at
        if key is not None and doubtful:
            found = self._store.find_suppressions(user_id, doubtful)
            self._cache.remember(user_id, {email: found.get(email) for email in doubtful})
            suppressed = {**suppressed, **found}
        if key is None or suppressed:
            self._cache.release(claim, recipients, intents)
            held = {}
        return Screening(key, suppressed, held)

    def claim(self, claim: Claim, recipients: Collection[str]) -> dict[str, Holder]:
        """Claims recipients that were held and may have been given back. Returns those that are still held."""
        return self._cache.take(claim, dict.fromkeys(recipients))

    def take_over(self, claim: Claim, stale: Mapping[str, Holder]) -> dict[str, Holder]:
        """Claims recipients whose holders came to nothing: their row is not in Postgres.

        Returns those that another message took over first.
        """
        return self._cache.take(claim, {email: holder.email_id for email, holder in stale.items()})

    def release(self, claim: Claim | None, recipients: Collection[str], intents: Sequence[str] = ()) -> None:
        """Gives claims and intents back: the rows were definitely not stored."""
        self._cache.release(claim, recipients, intents)

    def learned(self, user_id: str, suppressed: Mapping[str, str]) -> None:
        """Remembers what `Store.insert` found out about recipients."""
        self._cache.remember(user_id, suppressed)

    def event_recorded(self) -> None:
        """Wakes the delivery worker: an event was recorded that webhooks may be due for. Never waits, never raises."""
        webhook_wakes.post(self._cache.link)

    def used(self, key: ApiKey) -> None:
        """Notes that a key was used; last_used_at follows within seconds, at most once a minute a key. Never blocks."""
        self._uses.note(key.id)

    def _fetch_key(self, token_hash: str) -> ApiKey | None:
        def fetch() -> ApiKey | None:
            record = self._store.find_api_key(token_hash)
            if record is None:
                self._cache.store_unknown_key(token_hash)
                return None
            if self._write_backs is not None:
                self._write_backs.write(token_hash, record)
            return record.key

        return self._once(("key", token_hash), fetch)

    def _once(self, name: Hashable, ask: Callable[[], _T]) -> _T:
        """Greenlets that ask the same at the same time share one question, and its answer or error."""
        flight = self._flights.get(name)
        if flight is not None:
            return cast("_T", flight.get())
        flight = self._flights[name] = AsyncResult()
        try:
            answer = ask()
        except BaseException as error:
            flight.set_exception(error if isinstance(error, Exception) else PostgresUnavailable())
            raise
        else:
            flight.set(answer)
            return answer
        finally:
            del self._flights[name]


class _WriteBacks:
    """Writes keys to the shared cache, and looks at each a second time.

    A key may be revoked between our SELECT and our SET: then the entry that OpenSend deletes is not there yet, and
    ours would last its full time. What changed in between is seen by a SELECT after the SET.
    """

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache
        self._written: dict[str, KeyRecord] = {}

    def write(self, token_hash: str, record: KeyRecord) -> None:
        if not self._cache.link.up:
            return
        self._cache.store_key(token_hash, record)
        if not self._written:
            run_once("key-second-look", self._look_again, after=_SECOND_LOOK_DELAY)
        self._written[token_hash] = record

    def _look_again(self) -> None:
        written, self._written = self._written, {}
        try:
            now = self._store.find_api_keys(written.keys())
        except Unavailable:
            now = {}  # the next look-up asks Postgres
        changed = [token_hash for token_hash, record in written.items() if now.get(token_hash) != record]
        if changed:
            log.info("keys_changed_while_cached", keys=len(changed))
            self._cache.forget_keys(changed)


class _KeyUses:
    """Gathers which keys were used, and has it written off the path of the replies."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._touched: dict[str, float] = {}
        self._noted: set[str] = set()

    def note(self, key_id: str) -> None:
        now = time.monotonic()
        if now - self._touched.get(key_id, -_TOUCH_INTERVAL) < _TOUCH_INTERVAL:
            return
        self._touched.pop(key_id, None)
        self._touched[key_id] = now
        if len(self._touched) > _MAX_TOUCHED:
            del self._touched[next(iter(self._touched))]
        if not self._noted:
            run_once("key-uses", self._write, after=_TOUCH_DELAY)
        self._noted.add(key_id)

    def _write(self) -> None:
        ids, self._noted = self._noted, set()
        try:
            self._store.touch_api_keys(ids)
        except Unavailable:
            log.warning("last_used_at_not_written", keys=len(ids))
            for key_id in ids:
                self._touched.pop(key_id, None)  # the next use tries again
