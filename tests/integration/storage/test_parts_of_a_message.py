"""One message in any sequence of parts: every recipient gets it, and where something tells a repeat, gets it once.

The model is a count: how often each recipient is in a row of the message. Two acceptors, as in two workers, share a
real Postgres and a real Valkey, which may be away or forget everything between any two parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gevent
import psycopg2
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from config.settings import RecipientRule
from relay.core.errors import PostgresUnavailable
from relay.core.records import ApiKey
from relay.intake.acceptor import AcceptOptions, Acceptor
from relay.intake.lookups import Lookups
from relay.postgres.store import Store
from relay.redis.cache import Cache
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict
from scripts.database import NewApiKey

#: Enough for a message of five rows.
PEOPLE = [f"p{number}@x.example" for number in range(220)]
MERGE, ENVELOPE = RecipientRule.MERGE, RecipientRule.ENVELOPE


@dataclass(frozen=True)
class Mail:
    """One message's octets, and what tells that it comes again."""

    number: int
    message_id: bool
    key: bool
    in_header: int = 1

    @property
    def raw(self) -> bytes:
        header = [b"From: ann@example.com", b"Subject: number %d" % self.number]
        header.append(b"To: " + b",\r\n ".join(address.encode() for address in self.addressed))
        if self.message_id:
            header.append(b"Message-ID: <%d@example.com>" % self.number)
        if self.key:
            header.append(b"Idempotency-Key: key-%d" % self.number)
        return b"\r\n".join([*header, b"", b"Text", b""])

    @property
    def addressed(self) -> list[str]:
        """Who is in To."""
        return PEOPLE[: self.in_header]


@dataclass(frozen=True)
class Part:
    """One transaction of a message: its envelope, and under which rule."""

    envelope: tuple[str, ...]
    rule: RecipientRule

    def reaches(self, mail: Mail) -> set[str]:
        return {*self.envelope, *(mail.addressed if self.rule is MERGE else ())}


def part(start: int, stop: int, rule: RecipientRule = ENVELOPE) -> Part:
    return Part(tuple(PEOPLE[start:stop]), rule)


#: Parts as mail servers make them: runs of the list, of all sizes from one recipient to several rows.
PARTS = st.builds(
    lambda start, size, rule: part(start, start + size, rule),
    st.sampled_from([0, 1, 2, 40, 49, 50, 51, 100, 119]),
    st.sampled_from([1, 1, 2, 3, 49, 50, 51, 60, 100, 101]),
    st.sampled_from([ENVELOPE, MERGE]),
)
MAILS = [
    Mail(number, message_id, key, in_header)
    for number, (message_id, key, in_header) in enumerate(
        [(True, True, 1), (False, True, 1), (True, False, 1), (False, False, 1), (True, True, 60), (False, True, 60)]
    )
]


class LosingStore(Store):
    """A store whose next answer to an INSERT gets lost, if asked, though the rows are committed."""

    loses = 0

    def insert(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
        outcome = super().insert(*arguments, **options)  # type: ignore[arg-type]
        if self.loses:
            self.loses -= 1
            raise PostgresUnavailable(unclear=True)
        return outcome


class TwoAcceptors:
    """Two acceptors on one Postgres and one Valkey, and their client."""

    def __init__(self, postgres_url: str, redis_url: str, key: NewApiKey) -> None:
        self.key = key
        self._database = psycopg2.connect(postgres_url)
        self._database.autocommit = True
        self._redis = redis.Redis.from_url(redis_url)
        self._stores = [LosingStore(postgres_url) for _ in range(2)]
        self._caches = [Cache(redis_url, timeout=5.0, pause=0.01) for _ in range(2)]
        options = AcceptOptions(answer_seconds=30.0)
        self._with = [
            Acceptor(Lookups(store, cache), store, options)
            for store, cache in zip(self._stores, self._caches, strict=True)
        ]
        self._without = [Acceptor(Lookups(store, Cache(None)), store, options) for store in self._stores]
        self.redis_away = False

    def empty(self) -> None:
        self.redis_away = False
        self.forget()
        self.sql("TRUNCATE emails CASCADE")

    def forget(self) -> None:
        self._redis.flushall()

    def close(self) -> None:
        for thing in (*self._stores, *self._caches, self._redis, self._database):
            thing.close()

    def sql(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        with self._database.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def send(self, mail: Mail, part: Part, worker: int = 0, *, raw: bytes | None = None) -> Verdict:
        body = Body(1_000_000)
        body.write(mail.raw if raw is None else raw)
        login = Login(
            hashlib.sha256(self.key.token.encode()).hexdigest(),
            ApiKey(self.key.id, self.key.user_id, "full_access", None),
        )
        acceptor = (self._without if self.redis_away else self._with)[worker]
        return acceptor.store(Submission(login, part.envelope, part.rule, body, "test"))

    def lose_next_answer(self, worker: int) -> None:
        self._stores[worker].loses = 1

    def received(self, mail: Mail) -> Counter[str]:
        """How often each recipient is in a row of the message."""
        rows = self.sql('SELECT "to" || cc || bcc FROM emails WHERE subject = %s', f"number {mail.number}")
        for (addresses,) in rows:
            assert isinstance(addresses, list)
            assert len(addresses) <= 50
        return Counter(address for (addresses,) in rows for address in addresses)  # type: ignore[attr-defined]


@pytest.fixture
def acceptors(postgres_url: str, redis_url: str, make_api_key: Callable[..., NewApiKey]) -> Iterator[TwoAcceptors]:
    acceptors = TwoAcceptors(postgres_url, redis_url, make_api_key())
    yield acceptors
    acceptors.close()


class Deliveries(RuleBasedStateMachine):
    """Sends parts of messages, and keeps count of who has to have what."""

    acceptors: TwoAcceptors

    @initialize()
    def begin(self) -> None:
        self.acceptors.empty()
        self.due: dict[Mail, set[str]] = {}
        #: Messages of which a part came while Redis was away, or before it forgot them.
        self.unsure: set[Mail] = set()

    def note(self, mail: Mail, part: Part, verdict: Verdict) -> None:
        assert verdict.reply.code == 250, verdict
        self.due.setdefault(mail, set()).update(part.reaches(mail))
        if self.acceptors.redis_away:
            self.unsure.add(mail)

    @rule(mail=st.sampled_from(MAILS), part=PARTS, worker=st.integers(0, 1))
    def send(self, mail: Mail, part: Part, worker: int) -> None:
        self.note(mail, part, self.acceptors.send(mail, part, worker))

    @rule(mail=st.sampled_from(MAILS), part=PARTS, times=st.integers(2, 4))
    def repeat(self, mail: Mail, part: Part, times: int) -> None:
        for number in range(times):
            self.note(mail, part, self.acceptors.send(mail, part, number % 2))

    @rule(mail=st.sampled_from(MAILS), parts=st.lists(PARTS, min_size=2, max_size=6))
    def send_at_once(self, mail: Mail, parts: list[Part]) -> None:
        sending = [gevent.spawn(self.acceptors.send, mail, each, number % 2) for number, each in enumerate(parts)]
        gevent.joinall(sending, raise_error=True, timeout=120)
        for each, greenlet in zip(parts, sending, strict=True):
            self.note(mail, each, greenlet.value)

    @rule(mail=st.sampled_from([mail for mail in MAILS if mail.key]), part=PARTS)
    def lose_an_answer_and_repeat(self, mail: Mail, part: Part) -> None:
        self.acceptors.lose_next_answer(0)
        verdict = self.acceptors.send(mail, part, 0)
        if verdict.reply.code == 250:  # nothing had to be inserted
            self.acceptors.lose_next_answer(0)
            self.note(mail, part, verdict)
            self.acceptors._stores[0].loses = 0
        else:
            assert verdict.reply.code == 451
            self.note(mail, part, self.acceptors.send(mail, part, 1))

    @rule(mail=st.sampled_from([mail for mail in MAILS if mail.key]), part=PARTS)
    def use_the_key_for_another_text(self, mail: Mail, part: Part) -> None:
        if mail not in self.due:
            return
        before = self.acceptors.sql("SELECT count(*) FROM emails")
        verdict = self.acceptors.send(mail, part, raw=mail.raw + b"More text\r\n")
        assert verdict.outcome == "repeated"
        assert self.acceptors.sql("SELECT count(*) FROM emails") == before

    @rule()
    def redis_forgets(self) -> None:
        self.acceptors.forget()
        self.unsure |= self.due.keys()

    @rule(away=st.booleans())
    def redis_goes_or_comes(self, away: bool) -> None:
        self.acceptors.redis_away = away

    @invariant()
    def everybody_has_what_is_due(self) -> None:
        for mail, people in getattr(self, "due", {}).items():
            received = self.acceptors.received(mail)
            assert received.keys() == people, "nobody is left out, and nobody else gets it"
            if mail.key or (mail.message_id and mail not in self.unsure):
                assert set(received.values()) == {1}, (mail, received.most_common(3))


def test_any_sequence_of_parts_reaches_each_recipient_and_once_where_repeats_can_be_recognised(
    acceptors: TwoAcceptors,
) -> None:
    class Here(Deliveries):
        pass

    Here.acceptors = acceptors
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


# Sequences that were wrong once.


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize(
    ("mail", "parts"),
    [
        (Mail(0, message_id=True, key=True), [part(0, 100), part(100, 200)]),
        (Mail(0, message_id=True, key=True), [part(0, 60), part(60, 120)]),
        (Mail(0, message_id=False, key=True), [part(0, 1), part(1, 2), part(1, 2), part(1, 2), part(1, 2)]),
        (Mail(0, message_id=False, key=True, in_header=60), [part(0, 1, MERGE), part(55, 130, MERGE), part(0, 130)]),
        (Mail(0, message_id=False, key=True), [part(number, number + 1) for number in range(140)]),
    ],
    ids=["halves of 100", "halves of 60", "the second part four times", "overlapping", "one recipient a part"],
)
def test_a_split_message_with_a_key_reaches_each_recipient_once(
    acceptors: TwoAcceptors, mail: Mail, parts: list[Part], away: bool
) -> None:
    acceptors.redis_away = away
    for each in (*parts, *parts):
        assert acceptors.send(mail, each).reply.code == 250
    assert acceptors.received(mail) == Counter(set().union(*(each.reaches(mail) for each in parts)))
    repeats = {acceptors.send(mail, each).outcome for each in parts}
    assert repeats == {"repeated"}


@pytest.mark.parametrize("away", [False, True])
def test_many_parts_at_once_with_a_key_reach_each_recipient_once(acceptors: TwoAcceptors, away: bool) -> None:
    mail = Mail(0, message_id=False, key=True)
    acceptors.redis_away = away
    parts = [part(number, number + 3) for number in range(0, 120, 2)]
    sending = [gevent.spawn(acceptors.send, mail, each, number % 2) for number, each in enumerate(parts)]
    gevent.joinall(sending, raise_error=True, timeout=120)
    assert {greenlet.value.reply.code for greenlet in sending} == {250}
    assert acceptors.received(mail) == Counter(PEOPLE[:121])


def test_a_part_a_day_after_the_first_is_a_new_message(acceptors: TwoAcceptors) -> None:
    mail = Mail(0, message_id=False, key=True)
    for each in (part(0, 60), part(60, 130)):
        acceptors.send(mail, each)
    acceptors.sql("UPDATE emails SET created_at = now() - interval '23 hours 59 minutes'")
    assert acceptors.send(mail, part(60, 130)).outcome == "repeated"
    acceptors.sql("UPDATE emails SET created_at = now() - interval '24 hours 1 second'")
    assert acceptors.send(mail, part(60, 130)).outcome == "queued"
    assert acceptors.send(mail, part(60, 130)).outcome == "repeated"
    assert acceptors.send(mail, part(0, 60)).outcome == "queued"
    assert set(acceptors.received(mail).values()) == {2}


def test_a_text_that_postgres_cannot_hold_is_compared_as_it_is_stored(acceptors: TwoAcceptors) -> None:
    mail = Mail(0, message_id=False, key=True)
    raw = mail.raw.replace(b"number 0", b"number=?utf-8?q?=00?= 0").replace(b"Text", b"Te\0xt")
    for each in (part(0, 1), part(1, 2), part(1, 2)):
        assert acceptors.send(mail, each, raw=raw).reply.code == 250
    assert acceptors.sql("SELECT count(*) FROM emails") == [(2,)]
