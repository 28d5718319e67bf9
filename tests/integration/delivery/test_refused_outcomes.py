"""Postgres refuses to record what a provider has: the mail is not sent again, and its place is free for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from relay.core.errors import PostgresUnavailable
from relay.delivery import handovers as handovers_module
from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import Handovers
from relay.delivery.outcome import Failed, RefusedRecipient, Sent, Verdict
from relay.delivery.row import email_of
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import SentRow
from relay.redis import keys
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink
from tests.integration.delivery.test_statements import Provider, add, dispatcher_of, until
from tests.support.scripted_provider import Scripted

Query = Callable[..., list[tuple[Any, ...]]]
Add = Callable[..., str]


@pytest.fixture
def provider() -> Scripted:
    return Scripted()


@pytest.fixture
def deliverer(new_deliverer: Callable[..., Deliverer], provider: Scripted) -> Deliverer:
    return new_deliverer(provider)


@contextmanager
def refused(query: Query, condition: str = "NEW.status IN ('sent', 'bounced') OR NEW.provider_retry_count > 0") -> Any:
    """A trigger refuses such changes of rows, for as long as this lasts."""
    query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
        f" CREATE TRIGGER refuse BEFORE UPDATE ON emails FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"
    )
    try:
        yield
    finally:
        query("DROP TRIGGER IF EXISTS refuse ON emails; DROP FUNCTION refuse")


def deliver(deliverer: Deliverer, outgoing: Outgoing, email_id: str) -> None:
    (row,) = outgoing.claim([email_id])
    deliverer.deliver(email_of(row))


def look(handovers: Handovers) -> None:
    """A round in which all that is kept is tried again."""
    for each in handovers._refused.values():
        each.at = 0.0
    handovers.look()


def refused_recipient(*, passing: bool) -> RefusedRecipient:
    return RefusedRecipient("b@x.example", passing=passing, code="450" if passing else "550", message="no")


@pytest.mark.parametrize(
    ("answer", "status", "events"),
    [
        (Sent("id"), "sent", ["sent"]),
        (Sent("id", [refused_recipient(passing=False)]), "bounced", ["bounced", "sent"]),
        (Sent("id", [refused_recipient(passing=True)]), "queued", ["delayed"]),
    ],
)
def test_an_answer_that_is_refused_is_kept_and_recorded_when_it_may_be(
    add_email: Add,
    outgoing: Outgoing,
    deliverer: Deliverer,
    provider: Scripted,
    handovers: Handovers,
    query: Query,
    answer: Sent,
    status: str,
    events: list[str],
) -> None:
    provider.answer = answer
    email_id = add_email(to=["a@x.example", "b@x.example"])
    with refused(query):
        deliver(deliverer, outgoing, email_id)
        for _ in range(3):
            with pytest.raises(PostgresUnavailable):
                look(handovers)
        assert query("SELECT status FROM emails") == [("processing",)]
        # What the row can't say, an event does: for who claims it next.
        known = events if "sent" in events else []
        assert query("SELECT type FROM email_events ORDER BY 1") == [(event,) for event in known]
    look(handovers)
    assert query("SELECT status FROM emails") == [(status,)]
    assert query("SELECT type FROM email_events ORDER BY 1") == [(event,) for event in events]
    assert len(provider.calls) == 1
    assert not handovers._refused


@pytest.mark.parametrize("verdict", [Verdict.PASSING, Verdict.PERMANENT])
def test_a_failure_that_is_refused_goes_back_as_one_that_the_provider_does_not_have(
    add_email: Add,
    outgoing: Outgoing,
    deliverer: Deliverer,
    provider: Scripted,
    handovers: Handovers,
    query: Query,
    verdict: Verdict,
) -> None:
    provider.answer = Failed(verdict, "ACode", "not now")
    email_id = add_email()
    with refused(query):
        with pytest.raises(PostgresUnavailable):
            deliver(deliverer, outgoing, email_id)
        assert query("SELECT status FROM emails") == [("processing",)]
        look(handovers)
    # Not DeliveryUnclear, by which it would be held after a day, or fail where SMTP_RELAY_UNCLEAR says so.
    assert query("SELECT status, provider_last_error_code FROM emails") == [("queued", None)]


def test_mails_that_are_refused_take_no_places_from_others(
    database: Database, query: Query, outgoing: Outgoing, tmp_path: Path
) -> None:
    provider = Provider()
    bad = add(query, 6, user="bad")
    with refused(query, "NEW.user_id = 'bad' AND NEW.status = 'sent'"):
        dispatcher = dispatcher_of(database, outgoing, provider, None, folder=tmp_path, places=2)
        dispatcher.start()
        until(lambda: set(bad) <= set(provider.mails))
        others = add(query, 6, user="other")
        until(lambda: query("SELECT count(*) FROM emails WHERE status = 'sent'") == [(len(others),)])
        assert dispatcher.drain(30.0) == 0
    assert sorted(provider.mails) == sorted([*bad, *others])
    outgoing.close()


def test_what_is_kept_is_tried_less_often_each_time_and_keeps_no_other_from_it(
    add_email: Add, outgoing: Outgoing, deliverer: Deliverer, handovers: Handovers, query: Query
) -> None:
    bad, good = add_email(), add_email()
    with refused(query):
        deliver(deliverer, outgoing, bad)
        deliver(deliverer, outgoing, good)
    pauses = []
    with refused(query, f"NEW.id = '{bad}'"):
        for _ in range(6):
            with pytest.raises(PostgresUnavailable):
                look(handovers)
            pauses.append(handovers._refused[bad].pause)
        assert query("SELECT id::text FROM emails WHERE status = 'sent'") == [(good,)]
        handovers.look()  # it is not its time
    assert pauses == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    look(handovers)
    assert query("SELECT status, count(*) FROM emails GROUP BY 1") == [("sent", 2)]


def test_a_bug_with_one_that_is_kept_keeps_no_other_from_it(
    add_email: Add,
    outgoing: Outgoing,
    deliverer: Deliverer,
    handovers: Handovers,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, good = add_email(), add_email()
    with refused(query):
        deliver(deliverer, outgoing, bad)
        deliver(deliverer, outgoing, good)
    ended = Outgoing.ended

    def broken(each: Outgoing, row: SentRow, **named: Any) -> None:
        if row.email_id == bad:
            raise ZeroDivisionError
        ended(each, row, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Outgoing, "ended", broken)
        with pytest.raises(PostgresUnavailable):
            look(handovers)
    assert list(handovers._refused) == [bad]
    assert query("SELECT id::text FROM emails WHERE status = 'sent'") == [(good,)]


def test_where_too_many_are_kept_the_next_one_keeps_its_place(
    add_email: Add,
    outgoing: Outgoing,
    deliverer: Deliverer,
    handovers: Handovers,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No mail leaves of which the answer can be kept nowhere."""
    monkeypatch.setattr(handovers_module, "_MOST_REFUSED", 1)
    tries: list[float] = []

    def mended(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 3:
            query("DROP TRIGGER refuse ON emails")

    first, second = add_email(), add_email()
    with refused(query):
        deliver(deliverer, outgoing, first)
        monkeypatch.setattr("relay.delivery.records.gevent.sleep", mended)
        deliver(deliverer, outgoing, second)
    assert tries[:3] == [0.25, 0.5, 1.0]
    assert list(handovers._refused) == [first]
    assert query("SELECT id::text FROM emails WHERE status = 'sent'") == [(second,)]


@pytest.mark.parametrize(
    ("answer", "status"), [(Sent("id"), "sent"), (Sent("id", [refused_recipient(passing=True)]), "queued")]
)
def test_a_mail_whose_answer_is_kept_is_not_sent_again_when_its_claim_is_given_up(
    add_email: Add,
    outgoing: Outgoing,
    left: LeftRows,
    deliverer: Deliverer,
    provider: Scripted,
    handovers: Handovers,
    query: Query,
    answer: Sent,
    status: str,
) -> None:
    """Without Redis a scan knows no more of a claim than its age."""
    provider.answer = answer
    email_id = add_email(to=["a@x.example", "b@x.example"])
    with refused(query):
        deliver(deliverer, outgoing, email_id)
    query("UPDATE emails SET status = 'queued', provider_last_error_code = 'DeliveryUnclear'")
    deliver(deliverer, outgoing, email_id)
    assert len(provider.calls) == 1
    assert query("SELECT status FROM emails") == [(status,)]
    assert not handovers._refused


@pytest.fixture
def make(outgoing: Outgoing, left: LeftRows, redis_url: str) -> Iterator[Callable[[], Handovers]]:
    """Makes processes that follow one another in the same place."""
    links: list[RedisLink] = []

    def run() -> Handovers:
        links.append(RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=0.05))
        handovers = Handovers(ClaimStates(links[-1]), outgoing, left, service="s", index=0, provider="ses")
        handovers.look()
        return handovers

    yield run
    for link in links:
        link.close()


def test_the_next_process_records_what_the_last_one_had_kept(
    add_email: Add,
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    provider: Scripted,
    make: Callable[[], Handovers],
    query: Query,
    redis_url: str,
) -> None:
    email_id, handovers = add_email(), make()
    with refused(query):
        deliver(new_deliverer(provider, handovers=handovers), outgoing, email_id)
        handovers.close()
        with pytest.raises(PostgresUnavailable):
            make()
        assert query("SELECT status FROM emails") == [("processing",)]
    with redis.Redis.from_url(redis_url) as server:
        server.zadd(keys.DELIVERY_OWNERS_KEY, dict.fromkeys(server.zrange(keys.DELIVERY_OWNERS_KEY, 0, -1), 0))
    make()
    assert query("SELECT status FROM emails") == [("sent",)]
    assert query("SELECT source_id FROM email_events") == [(f"provider-sent:{email_id}",)]
