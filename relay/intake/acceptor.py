"""From a complete message to a committed row, or to the reply that says why not.

The order is what makes it safe: parse, ask Redis everything in one round trip, commit, answer. The row's id is made
first, and other transactions with the same message learn that id from Redis; whether it ever became a row only
Postgres shows, and is looked up for repeats alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime
from itertools import repeat
from typing import Final, Self

import gevent
import structlog

from config.settings import Settings
from relay.core import deadlines, metrics
from relay.core.address import BadAddress, normalise
from relay.core.errors import Unavailable, Unstorable
from relay.core.frozen import frozen
from relay.core.ids import new_email_id
from relay.core.records import ApiKey, EmailRow
from relay.intake import policy, refusals
from relay.intake.lookups import Lookups, Screening
from relay.intake.policy import Recipients
from relay.mail import Fault, Limits, Message, Unusable, parse
from relay.postgres.group_commit import Stored, Suppressed
from relay.postgres.message_parts import part_keys
from relay.postgres.store import Store
from relay.redis.claims import Claim, Holder, key_of
from relay.smtp import replies
from relay.smtp.replies import Reply
from relay.smtp.submission import Submission, Verdict

log = structlog.get_logger(__name__)

#: How long a repeat waits to learn what became of the transaction that has the same message in hand; seconds.
PATIENCE_SECONDS: Final = 4.0
#: And what it keeps back of the time for its reply, so that its last look at Postgres is one; seconds.
_RESERVE_SECONDS: Final = 0.5
_POLL_SECONDS: Final = 0.05
_LOGGED_NAMES: Final = 20

_PARSE_SECONDS: Final = metrics.STAGE_SECONDS.labels("parse")
_SCREEN_SECONDS: Final = metrics.STAGE_SECONDS.labels("screen")
_STORE_SECONDS: Final = metrics.STAGE_SECONDS.labels("store")

#: What makes a message of raw octets, and of the reverse-path where From holds a name alone. Raises Unusable.
Parse = Callable[[bytes, Limits, str], Message]


@frozen
class AcceptOptions:
    """What the operator decided, as far as accepting goes."""

    limits: Limits = field(default_factory=Limits)
    #: Of one message, header and envelope together.
    max_recipients: int = 1000
    #: How long a message is known as one that came before; 0: not at all.
    dedupe_seconds: int = 3600
    #: Whether file names are refused that Amazon SES refuses.
    refuses_extensions: bool = True
    #: Whether stored rows need a job: not so in polling mode.
    publishes: bool = False
    #: How long all that Postgres is asked for one message may take together; seconds.
    answer_seconds: float = 4.8
    #: Seconds after which a claim without a row is taken over: its holder has ended. Longer than a commit may take.
    lease_seconds: float = 15.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings say."""
        limits = Limits(
            max_parts=settings.max_parts,
            max_part_depth=settings.max_part_depth,
            allow_utf8_local_parts=settings.allow_utf8_local_parts,
        )
        return cls(
            limits,
            settings.max_recipients,
            settings.dedupe_seconds,
            publishes=settings.queue_url is not None,
            refuses_extensions=settings.refuse_extensions,
        )


class _Refused(Exception):
    """Leaves the accept path with a reply; on its way out, claims are given back."""

    def __init__(self, reply: Reply, outcome: str) -> None:
        super().__init__(outcome)
        self.reply = reply
        self.outcome = outcome


class Acceptor:
    """Accepts one message at a time for each greenlet that calls it."""

    def __init__(self, lookups: Lookups, store: Store, options: AcceptOptions, parse: Parse = parse) -> None:
        """`parse`: `relay.mail.parse`, or the same with a limit on its time."""
        self._lookups = lookups
        self._store = store
        self._options = options
        self._parse = parse

    def store(self, submission: Submission) -> Verdict:
        """Stores the message. A positive reply means that its rows are committed. Raises nothing but for bugs."""
        try:
            message, key = self._read(submission)
            end = deadlines.begin(self._options.answer_seconds)
            try:
                verdict = self._store_message(submission, message, key)
            finally:
                end()
            return verdict if not message.left_out else _with_left_out(submission, verdict, message.left_out)
        except Unusable as unusable:
            return Verdict(refusals.refusal(unusable), unusable.fault.value)
        except _Refused as refused:
            return Verdict(refused.reply, refused.outcome)
        except Unstorable:
            return Verdict(replies.UNSTORABLE, "unstorable")
        except Unavailable as unavailable:
            return Verdict(replies.TRY_LATER, f"{unavailable.service}_unavailable")

    def _read(self, submission: Submission) -> tuple[Message, bytes]:
        """The message, and the key of claims for it, or nothing where none are made.

        The octets themselves go no further: tens of megabytes less, while the message is stored.
        """
        raw = submission.body.read()
        began = time.monotonic()
        message = self._parsed(raw, submission)
        _PARSE_SECONDS.observe(time.monotonic() - began)
        metrics.PARSED.labels(message.parser).inc()
        if message.dropped_parts:
            metrics.DROPPED_PARTS.inc(message.dropped_parts)
        if message.header_senders:
            message = policy.without_foreign_senders(message, submission.login.key)
        if message.dropped_headers:
            _log_dropped(submission, message.dropped_headers)
        if not message.message_id or not self._options.dedupe_seconds:
            return message, b""
        return message, key_of(submission.login.key.user_id, message.message_id, raw)

    def _parsed(self, raw: bytes, submission: Submission) -> Message:
        """The message. Where its From holds a name alone, the envelope's reverse-path is the address."""
        limits = self._options.limits
        try:
            return self._parse(raw, limits, "")
        except Unusable as unusable:
            if unusable.fault is not Fault.NO_FROM:
                raise
            try:
                reverse_path = normalise(*submission.reverse_path)
            except BadAddress:
                raise unusable from None
        return self._parse(raw, limits, reverse_path)

    def _store_message(self, submission: Submission, message: Message, key: bytes) -> Verdict:
        login = submission.login
        _require_domain(login.key, message)
        self._require_deliverable(message, submission.body.size)
        recipients = policy.recipients_of(message, submission.recipients, submission.rule)
        mailboxes = recipients.mailboxes()
        if not mailboxes:
            raise _Refused(replies.left_out(replies.NO_RECIPIENTS, message.left_out), "no_recipients")
        if len(mailboxes) > self._options.max_recipients:
            reply = replies.too_many_recipients(len(mailboxes), self._options.max_recipients)
            raise _Refused(reply, "too_many_recipients")
        ids = [new_email_id()] if len(mailboxes) == 1 else [new_email_id() for _ in recipients.portions()]
        claim = (
            Claim(key, user_id=login.key.user_id, email_id=ids[0], seconds=self._options.dedupe_seconds)
            if key
            else None
        )
        intents = ids if self._options.publishes else ()
        attempt = _Attempt(self._lookups, claim, mailboxes=mailboxes, intents=intents)
        try:
            began = time.monotonic()
            screening = attempt.screen(login.token_hash, login.key.user_id)
            _SCREEN_SECONDS.observe(time.monotonic() - began)
            message = self._judged(screening, login.key.user_id, message)
            holders: dict[str, Holder] = {}
            if screening.held:
                # With an idempotency key Postgres puts all that store the message in an order: none has to wait here.
                keyed = message.idempotency_key is not None
                holders = self._settled(screening.held) if keyed else self._settle(attempt, screening.held)
            fresh = recipients if not holders else recipients.only(set(mailboxes) - holders.keys())
            if holders and not fresh.mailboxes():
                attempt.release()
                return _repeated(max(holders.values(), key=lambda holder: holder.age_ms).email_id)
            return self._insert(attempt, message, fresh, user_id=login.key.user_id, ids=ids)
        except Unavailable as unavailable:
            if not unavailable.unclear:
                attempt.release()
            raise
        except Exception:
            attempt.release()
            raise

    def _require_deliverable(self, message: Message, octets: int) -> None:
        """A row that no provider could ever take is not stored: its mail would be answered 250 and fail."""
        if message.attachments and self._options.refuses_extensions:
            extension = policy.refused_extension_of(message)
            if extension is not None:
                raise _Refused(replies.refused_extension(extension), "refused_extension")
        if not policy.fits_provider(message, octets):
            raise _Refused(replies.COMPOSED_TOO_LARGE, "composed_too_large")

    def _judged(self, screening: Screening, user_id: str, message: Message) -> Message:
        """What the key, as it is now, may send of the message. Raises _Refused."""
        if screening.key is None or screening.key.user_id != user_id:
            raise _Refused(replies.KEY_REVOKED, "revoked")
        _require_domain(screening.key, message)
        if screening.suppressed:
            raise self._suppressed(user_id, screening.suppressed)
        return policy.without_foreign_senders(message, screening.key) if message.header_senders else message

    def _suppressed(self, user_id: str, suppressed: Mapping[str, str]) -> _Refused:
        """The refusal, and its event for the webhooks."""
        named = list(suppressed.items())
        payload = {
            "reason": "recipient_suppressed",
            "recipients": [{"email": address, "reason": reason} for address, reason in named],
            "recipient_count": len(named),
            "submitted_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }
        self._store.record_suppressed(user_id, payload)
        self._lookups.event_recorded()
        return _Refused(replies.suppressed(named), "suppressed")

    def _settle(self, attempt: _Attempt, held: Mapping[str, Holder]) -> dict[str, Holder]:
        """Finds out which recipients really have the message already, waiting for a transaction that is storing it now.

        Returns them with their rows. All others are claimed by this attempt.
        """
        settled: dict[str, Holder] = {}
        open_questions = dict(held)
        give_up = deadlines.after(PATIENCE_SECONDS + _RESERVE_SECONDS) - _RESERVE_SECONDS
        while open_questions:
            settled |= self._settled(open_questions)
            open_questions = {box: holder for box, holder in open_questions.items() if box not in settled}
            lease_ms = self._options.lease_seconds * 1000
            stale = {box: holder for box, holder in open_questions.items() if holder.age_ms > lease_ms}
            if stale:
                taken_first = attempt.take_over(stale)
                open_questions = {box: h for box, h in open_questions.items() if box not in stale} | taken_first
            elif open_questions:
                if time.monotonic() > give_up:
                    raise _Refused(replies.TRY_LATER, "still_in_progress")
                gevent.sleep(_POLL_SECONDS)
                open_questions = attempt.claim_again(open_questions)
        return settled

    def _settled(self, held: Mapping[str, Holder]) -> dict[str, Holder]:
        """Those of these recipients whose holder's row is there."""
        stored = self._store.rows_exist({holder.email_id for holder in held.values()})
        return {box: holder for box, holder in held.items() if holder.email_id in stored}

    def _insert(
        self, attempt: _Attempt, message: Message, fresh: Recipients, *, user_id: str, ids: Sequence[str]
    ) -> Verdict:
        key = message.idempotency_key
        if key is None:
            rows = policy.rows(message, fresh, user_id=user_id, ids=ids, keys=repeat(None))
            self._commit(rows, fresh, user_id)
            return _queued(rows)
        # Parts that come together would all look for the same place, of which one gets it: so, within a process, one
        # after the other.
        with self._store.turn(user_id, key):
            keys = part_keys(key, ids[0])
            while True:
                rows = policy.rows(message, fresh, user_id=user_id, ids=ids, keys=keys)
                if self._commit(rows, fresh, user_id):
                    return _queued(rows)
                earlier = self._store.find_parts(user_id, key, rows[0])
                if earlier is None:  # just deleted
                    keys = part_keys(key, ids[0])
                    continue
                fresh = fresh.only(set(fresh.mailboxes()) - earlier.mailboxes if earlier.same_message else ())
                if not fresh.mailboxes():
                    attempt.release()
                    return _repeated(earlier.first_id)
                keys = part_keys(key, earlier.first_id, earlier.rows)

    def _commit(self, rows: Sequence[EmailRow], fresh: Recipients, user_id: str) -> bool:
        """Whether the rows are committed; False: the idempotency key of the first one has been used."""
        began = time.monotonic()
        outcome = self._store.insert(rows, fresh.mailboxes())
        _STORE_SECONDS.observe(time.monotonic() - began)
        if isinstance(outcome, Suppressed):
            self._lookups.learned(user_id, outcome.reasons)
            raise self._suppressed(user_id, outcome.reasons)
        return isinstance(outcome, Stored)


class _Attempt:
    """One transaction's hold on a message: what it has claimed in Redis, to be given back unless a row comes of it."""

    def __init__(
        self, lookups: Lookups, claim: Claim | None, *, mailboxes: Sequence[str], intents: Sequence[str]
    ) -> None:
        self._lookups = lookups
        self._claim = claim
        self._mailboxes = mailboxes
        self._intents = intents

    def screen(self, token_hash: str, user_id: str) -> Screening:
        return self._lookups.screen(token_hash, user_id, self._mailboxes, claim=self._claim, intents=self._intents)

    def claim_again(self, mailboxes: Collection[str]) -> dict[str, Holder]:
        """Claims those that are no longer held; returns those that are still held."""
        return {} if self._claim is None else self._lookups.claim(self._claim, mailboxes)

    def take_over(self, stale: Mapping[str, Holder]) -> dict[str, Holder]:
        """Claims those whose holder has ended; returns those that another message took over first."""
        return {} if self._claim is None else self._lookups.take_over(self._claim, stale)

    def release(self) -> None:
        """Nothing was stored: another transaction with the same message may store it."""
        self._lookups.release(self._claim, self._mailboxes, self._intents)


def _log_dropped(submission: Submission, names: Sequence[str]) -> None:
    """SES takes no more headers, or not these (contract section 3): their names are logged, never their values."""
    log.info(
        "headers_dropped", connection=submission.connection_id, count=len(names), names=list(names[:_LOGGED_NAMES])
    )


def _with_left_out(submission: Submission, verdict: Verdict, count: int) -> Verdict:
    """The verdict on a message of which entries of To, Cc or Bcc were no addresses. The reply says how many."""
    if verdict.reply.positive:
        metrics.ENTRIES_LEFT_OUT.inc(count)
        log.info("entries_left_out", connection=submission.connection_id, count=count)
        verdict.reply = replies.left_out(verdict.reply, count)
    return verdict


def _require_domain(key: ApiKey, message: Message) -> None:
    if not policy.may_send_from(key, message.from_addresses):
        raise _Refused(refusals.wrong_domain(key), "domain")


def _queued(rows: Sequence[EmailRow]) -> Verdict:
    return Verdict(
        replies.queued(rows[0].id), outcome="queued", email_id=rows[0].id, stored=tuple([row.id for row in rows])
    )


def _repeated(first_id: str) -> Verdict:
    return Verdict(replies.already_queued(first_id), outcome="repeated", email_id=first_id)
