"""What the relay does with Redis, done once, by the code and over the link that mail takes.

Nothing stays: what is written has names that no mail can have, a life of seconds, and is deleted at the end.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from config.settings import Settings
from relay.core.api_keys import KeyRecord
from relay.core.errors import RedisUnavailable
from relay.core.records import ApiKey
from relay.jobs.intents import Intents
from relay.limits.attempts import Attempts, Candidate
from relay.operator import redis_operations
from relay.operator.finding import Finding
from relay.operator.outbox import Outbox
from relay.operator.redis_operations import Operation
from relay.redis import keys, suppression_lists
from relay.redis.cache import Cache
from relay.redis.claims import Claim, claim_key
from relay.redis.key_entries import key_names
from relay.redis.suppression_lists import ListWriter

#: How long what is written would be kept, were it not deleted; seconds.
_SECONDS: Final = 10


class RedisProbe:
    """All operations of one run. `timeout`: seconds that one reply may take."""

    def __init__(self, settings: Settings, *, timeout: float) -> None:
        self._settings = settings
        self._cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=timeout)
        self._link = self._cache.link
        token = secrets.token_hex(16)
        self._token_hash = token * 2
        self._user = f"check:{token}"
        self._claim = Claim(secrets.token_bytes(32), user_id=self._user, email_id=str(uuid.uuid4()), seconds=_SECONDS)
        self._candidate = Candidate(origin=secrets.token_bytes(8), key=secrets.token_bytes(8))

    def findings(self) -> Iterator[Finding]:
        """What is wrong, a line for each operation; or one that says that nothing is. Never raises for Redis's sake."""
        try:
            yield from redis_operations.findings(self._link, self._operations(), away="")
        finally:
            self._clean_up()
            self._link.close()

    def _operations(self) -> Sequence[Operation]:
        operations = [
            Operation("scripts", "every look-up would go to Postgres, and repeats be stored again", self._scripts),
            Operation("API keys", "every look-up of a key would go to Postgres", self._keys),
            Operation("claims", "repeats would be stored again", self._claims),
            Operation("suppressions", "every look-up of a recipient would go to Postgres", self._suppressions),
            Operation("lists of suppressions", "warm-cache could not fill them", self._lists),
        ]
        if self._settings.max_auth_failures_per_address:
            operations.append(Operation("failed log-ins", "each process would count them for itself", self._attempts))
        if self._settings.key_messages_per_minute or self._settings.address_messages_per_minute:
            operations.append(Operation("messages a minute", "each process would count them for itself", self._rates))
        if self._settings.queue_url is not None:
            loss = "jobs that a crash or an outage leaves behind would be published after 15 minutes"
            operations.append(Operation("jobs", loss, self._jobs))
        return operations

    # The operations. Each says whether it got the answers that it should.

    def _scripts(self) -> bool:
        """A server that has lost a script is given its text; most checks would find the scripts there."""
        return bool(self._link.call("EVAL", "return 1", 0) == 1)

    def _keys(self) -> bool:
        record = KeyRecord(
            ApiKey(id=str(uuid.uuid4()), user_id=self._user, permission="full_access", domain="check.invalid"),
            "check.invalid",
        )
        self._cache.store_key(self._token_hash, record)
        stored = self._cache.find_key(self._token_hash).key == record.key
        self._cache.forget_keys([self._token_hash])
        self._cache.store_unknown_key(self._token_hash)
        return stored and self._cache.find_key(self._token_hash).unknown

    def _claims(self) -> bool:
        people = ["a@check.invalid", "b@check.invalid"]
        mine, other = (
            self._claim,
            Claim(self._claim.key, user_id=self._user, email_id=str(uuid.uuid4()), seconds=_SECONDS),
        )
        intents = [mine.email_id] if self._settings.queue_url is not None else []
        first = self._cache.screen(self._token_hash, self._user, people, claim=mine, intents=intents)
        second = self._cache.screen(self._token_hash, self._user, people, claim=other, intents=())
        held = self._cache.take(other, dict.fromkeys(people))
        self._cache.release(mine, people, intents)
        free = self._cache.take(other, dict.fromkeys(people))
        self._cache.release(other, people, ())
        if first is None or second is None:
            return False
        return not first.held and second.held.keys() == held.keys() == set(people) and not free

    def _suppressions(self) -> bool:
        self._cache.remember(self._user, {"gone@check.invalid": "manual", "clear@check.invalid": None})
        people = ["gone@check.invalid", "clear@check.invalid"]
        screened = self._cache.screen(self._token_hash, self._user, people, claim=None, intents=())
        self._link.call("SMISMEMBER", keys.SUPPRESSION_BUCKET_PREFIX + self._user.encode(), "0")
        return screened is not None and screened.suppressed == {"gone@check.invalid": "manual"}

    def _lists(self) -> bool:
        outbox = Outbox(self._link)
        outbox.load(suppression_lists.SCRIPTS)
        writers = [ListWriter(outbox, self._user, size, _SECONDS) for size in (1, suppression_lists.BUCKET_SIZE + 1)]
        for writer in writers:
            writer.add(["listed@check.invalid"])
            writer.finish()
        outbox.settle()
        people = ["listed@check.invalid", "unlisted@check.invalid"]
        screened = self._cache.screen(self._token_hash, self._user, people, claim=None, intents=())
        ListWriter(outbox, self._user, 0, _SECONDS).finish()  # replaces the other, which is dropped
        outbox.settle()
        return screened is not None and screened.listed == ["listed@check.invalid"] and not screened.unknown

    def _attempts(self) -> bool:
        attempts = Attempts(self._link, most=1, refusal_seconds=_SECONDS, longest_delay=1.0)
        attempts.admit(self._candidate)
        begun = attempts.begin(self._candidate)
        attempts.failed(self._candidate)
        attempts.end(self._candidate)
        refused = attempts.admit(self._candidate).refused
        attempts.succeeded(Candidate(origin=self._candidate.origin, key=b"good"))
        return begun and refused

    def _rates(self) -> bool:
        from relay.limits.rates import Rate  # noqa: PLC0415 - 2 MB, only with a limit

        # The library renames a window when its minute is over, which is not waited for here.
        old, new = (f"{keys.RATE_PREFIX}/{self._user}/{number}" for number in range(2))
        self._link.call("SET", old, 1, "EX", _SECONDS)
        self._link.call("RENAME", old, new)
        self._link.post([("DEL", new)])
        return [Rate(self._link, "smtp-check", 2).take(self._user) for _ in range(3)] == [True, True, False]

    def _jobs(self) -> bool:
        intents = Intents(self._link)
        email_id = self._claim.email_id
        intents.note([email_id], intents.now_ms())
        noted = bool(intents.older_than(0, skip=0, limit=1))
        intents.mark_reminded([email_id])
        reminded = intents.reminded([email_id], 6 * 3600) == {email_id}
        self._link.call("ZREM", keys.REMINDED_KEY, email_id)
        intents.drop([email_id])
        intents.settle()
        for lock in (keys.SWEEP_LOCK_KEY, keys.REMIND_LOCK_KEY):
            if intents.hold_lock(lock, self._user, 1):  # else another process sweeps just now
                intents.leave_lock(lock, self._user)
        return noted and reminded

    def _clean_up(self) -> None:
        origin = self._candidate.origin.hex().encode()
        digest_prefix = suppression_lists.digest_prefix(self._user)
        names = [
            *key_names(self._token_hash),
            claim_key(self._claim),
            suppression_lists.marker_key(self._user),
            *(keys_of + origin for keys_of in (keys.AUTH_FAILURES_PREFIX, keys.AUTH_REFUSED_PREFIX)),
            *(keys_of + origin for keys_of in (keys.AUTH_LOOK_PREFIX, keys.AUTH_LOOK_UPS_PREFIX)),
            *(keys.AUTH_KNOWN_PREFIX + origin + key.hex().encode() for key in (self._candidate.key, b"good")),
            *(
                suppression_lists.entry_key(suppression_lists.digest(digest_prefix, f"{name}@check.invalid"))
                for name in ("gone", "clear")
            ),
        ]
        try:
            marker = self._link.call("GET", suppression_lists.marker_key(self._user))
            if marker is not None:
                generation = marker.partition(b":")[0]
                names.append(keys.SUPPRESSION_BUCKET_PREFIX + generation + b":0:" + self._user.encode())
        except RedisUnavailable:
            pass  # whatever was written ends by itself
        for name in names:  # one by one: the right to delete may be missing for some
            self._link.post([("DEL", name)])
        self._cache.ping()
