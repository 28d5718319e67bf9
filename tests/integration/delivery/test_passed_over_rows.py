"""Rows that Postgres does not let be changed: a trigger refuses them, or passes over them without a word, or they are
gone. Each is sent once at most, is said once, and keeps no other from leaving.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest
from structlog.testing import capture_logs

from relay.core import metrics
from relay.core.errors import PostgresLocked, PostgresRefused, PostgresUnavailable
from relay.delivery import passed_over, row_source
from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import Handovers
from relay.delivery.outcome import of_silence
from relay.delivery.row import email_of
from relay.delivery.unclear import LeftBehind
from relay.postgres import halving
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import HELD_OCTETS, Outgoing
from relay.postgres.sent_rows import Event
from relay.postgres.waiting import PLANNER, WaitingRows
from relay.redis.claim_states import ClaimStates
from tests.integration.delivery.test_statements import Counted, Jobs, Provider, add, dispatcher_of, until
from tests.support.scripted_provider import Scripted

Query = Callable[..., list[tuple[Any, ...]]]
#: What a trigger does with a row: refuses its statement, passes over it, or keeps it as it was, which is an update.
TRIGGERS = {"refused": "RAISE 'refused'", "passed over": "RETURN NULL", "kept": "RETURN OLD"}
#: As where the row has characters that UTF-8 does not have.
_UNSTORABLE = "RAISE 'refused' USING ERRCODE = 'untranslatable_character'"


@contextmanager
def trigger(query: Query, what: str, condition: str) -> Iterator[None]:
    query(
        f"CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {TRIGGERS.get(what, what)}; END $$;"
        f" CREATE TRIGGER trouble BEFORE UPDATE ON emails FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION trouble()"
    )
    try:
        yield
    finally:
        query("DROP TRIGGER trouble ON emails; DROP FUNCTION trouble")


@pytest.fixture
def counted(postgres_url: str, green_psycopg: None) -> Iterator[Counted]:
    database = Counted(postgres_url, switched_off=PLANNER, lock_seconds=0.05)
    yield database
    database.close()


@pytest.fixture
def asking(counted: Counted) -> Iterator[Outgoing]:
    outgoing = Outgoing(counted)
    yield outgoing
    outgoing.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries come soon one after the other."""
    monkeypatch.setattr(passed_over, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(passed_over, "_LONGEST_SECONDS", 0.05)
    monkeypatch.setattr(passed_over, "_LOG_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving goes on to its end on a slow machine too."""
    monkeypatch.setattr(halving, "_SECONDS", 60.0)


def said(lines: list[Any], event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mode", ["postgres", "queue"])
@pytest.mark.parametrize("what", TRIGGERS)
def test_a_row_that_cannot_be_claimed_is_said_once_and_keeps_no_other_from_leaving(
    counted: Counted, asking: Outgoing, query: Query, tmp_path: Path, mode: str, what: str
) -> None:
    bad = add(query, 1)
    others = add(query, 30)
    provider = Provider()
    jobs = Jobs([*bad, *others]) if mode == "queue" else None
    dispatcher = dispatcher_of(counted, asking, provider, jobs, folder=tmp_path, places=2)
    before = metrics.DELIVERIES.labels("passed_over").value
    with trigger(query, what, f"NEW.id = '{bad[0]}' AND NEW.status = 'processing'"), capture_logs() as lines:
        dispatcher.start()
        until(lambda: len(provider.mails) == len(others))
        until(lambda: bool(said(lines, "rows_passed_over")))
        tries = counted.statements["WITH free AS ( SELECT e.id"]
        until(lambda: counted.statements["WITH free AS ( SELECT e.id"] > tries + 5)
        assert sorted(provider.mails) == sorted(others)
        (line,) = said(lines, "rows_passed_over")
        assert (line["step"], line["count"], line["email_id"]) == ("claim", 1, bad[0])
        assert ("P0001" in line["cause"]) == (what == "refused")
        assert metrics.DELIVERIES.labels("passed_over").value == before + 1
        if jobs is not None:
            until(lambda: sorted(jobs.deleted) == sorted([*bad, *others]))
    until(lambda: bad[0] in provider.mails)
    assert dispatcher.drain(30.0) == 0
    assert sorted(provider.mails) == sorted([*bad, *others])


@pytest.mark.usefixtures("impatient")
def test_the_job_of_a_row_that_stays_locked_is_done_with_and_the_row_leaves_later(
    counted: Counted, query: Query, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that went back again and again would end in the dead-letter queue, and stop a FIFO queue meanwhile."""
    monkeypatch.setattr(row_source, "LATE_SECONDS", 900.0)  # no look finds it before
    (locked,) = add(query, 1)
    others = add(query, 5)
    provider, jobs = Provider(), Jobs([locked.upper(), *others])
    outgoing = Outgoing(counted, deadline=0.5)
    dispatcher = dispatcher_of(counted, outgoing, provider, jobs, folder=tmp_path, places=2)
    with psycopg2.connect(postgres_url) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT FROM emails WHERE id = %s FOR UPDATE", (locked,))
        dispatcher.start()
        until(lambda: len(jobs.deleted) == 6)
        assert sorted(provider.mails) == sorted(others)
    holder.close()
    until(lambda: locked in provider.mails)
    assert dispatcher.drain(30.0) == 0
    outgoing.close()
    assert len(provider.mails) == 6


def test_a_job_says_whether_its_row_is_locked_refused_or_passed_over(
    counted: Counted, query: Query, postgres_url: str
) -> None:
    outgoing = Outgoing(counted, deadline=0.5)
    (email_id,) = add(query, 1)
    with psycopg2.connect(postgres_url) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT FROM emails WHERE id = %s FOR UPDATE", (email_id,))
        with pytest.raises(PostgresLocked):
            outgoing.claim_one(email_id)
    holder.close()
    for what in (*TRIGGERS, _UNSTORABLE):
        with trigger(query, what, "NEW.status = 'processing'"), pytest.raises(PostgresRefused):
            outgoing.claim_one(email_id)
    assert len(outgoing.claim_one(email_id)) == 1
    assert outgoing.claim_one(email_id) == []


def test_of_a_claim_of_many_only_what_is_refused_is_left(asking: Outgoing, query: Query, counted: Counted) -> None:
    ids = add(query, 10)
    refused: dict[str, str] = {}
    with trigger(query, "refused", f"NEW.id = '{ids[4]}'"):
        counted.statements.clear()
        rows = asking.claim(ids, skip_locked=True, refused=refused)
    assert {str(row[0]) for row in rows} == {*ids} - {ids[4]}
    assert refused == {ids[4]: "P0001"}
    assert counted.statements["WITH free AS ( SELECT e.id"] <= 9
    # The lease of each is known.
    assert all(asking.may_hand_over(email_id) == (email_id != ids[4]) for email_id in ids)


@pytest.mark.parametrize("what", TRIGGERS)
def test_one_outcome_of_two_hundred_that_is_not_recorded_is_found_by_few_statements(
    asking: Outgoing, query: Query, counted: Counted, what: str
) -> None:
    ids = add(query, 200)
    asking.claim(ids)
    asking.sent(ids[0], None)  # the connection is made
    with trigger(query, what, f"NEW.id = '{ids[77]}'"):
        counted.statements.clear()
        ended = {email_id: gevent.spawn(asking.sent, email_id, None) for email_id in ids[1:]}
        gevent.joinall(list(ended.values()), timeout=60)
    assert [email_id for email_id in ids[1:] if not ended[email_id].successful()] == [ids[77]]
    assert isinstance(ended[ids[77]].exception, PostgresRefused)
    assert query("SELECT status, count(*) FROM emails GROUP BY 1 ORDER BY 2") == [("processing", 1), ("sent", 199)]
    # Of all rows one by one it would be two hundred.
    assert sum(counted.statements.values()) <= 25, counted.statements


def deliver(deliverer: Deliverer, outgoing: Outgoing, email_id: str) -> None:
    for row in outgoing.claim([email_id]):
        deliverer.deliver(email_of(row))


def look(handovers: Handovers) -> None:
    """A round in which all that is kept is tried again."""
    for each in handovers._refused.values():
        each.at = 0.0
    handovers.look()


@pytest.mark.parametrize("what", ["passed over", "kept"])
def test_a_mail_whose_row_is_passed_over_is_sent_once_and_recorded_when_it_may_be(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    handovers: Handovers,
    query: Query,
    what: str,
) -> None:
    provider = Scripted()
    deliverer = new_deliverer(provider)
    email_id, other = add_email(), add_email()
    with trigger(query, what, f"NEW.id = '{email_id}' AND NEW.status = 'sent'"), capture_logs() as lines:
        deliver(deliverer, outgoing, email_id)
        for _ in range(3):
            with pytest.raises(PostgresUnavailable):
                look(handovers)
        # Its claim is given up, and taken up again, as without Redis after a lease.
        query(
            "UPDATE emails SET status = 'queued', provider_last_error_code = 'DeliveryUnclear' WHERE id = %s", email_id
        )
        deliver(deliverer, outgoing, email_id)
        deliver(deliverer, outgoing, other)
        assert query("SELECT id::text, status FROM emails ORDER BY status") == [
            (email_id, "processing"),
            (other, "sent"),
        ]
    assert [line["email_id"] for line in said(lines, "row_passed_over")] == [email_id]
    look(handovers)
    assert query("SELECT DISTINCT status FROM emails") == [("sent",)]
    assert query("SELECT email_id::text, count(*) FROM email_events GROUP BY 1 ORDER BY 1") == sorted(
        [(email_id, 1), (other, 1)]
    )
    assert len(provider.calls) == 2


@pytest.mark.parametrize("what", TRIGGERS)
def test_who_comes_after_a_process_without_redis_learns_from_the_event_that_a_mail_is_out(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    left: LeftRows,
    without_redis: ClaimStates,
    new_deliverer: Callable[..., Deliverer],
    query: Query,
    what: str,
) -> None:
    provider = Scripted()
    email_id = add_email()
    with trigger(query, what, "NEW.status = 'sent'"):
        deliver(new_deliverer(provider), outgoing, email_id)
    query("UPDATE emails SET status = 'queued', provider_last_error_code = 'DeliveryUnclear'")
    successor = Handovers(without_redis, outgoing, left, service="test", index=1, provider="ses")
    deliver(new_deliverer(provider, handovers=successor), outgoing, email_id)
    assert query("SELECT status FROM emails") == [("sent",)]
    assert query("SELECT source_id FROM email_events") == [(f"provider-sent:{email_id}",)]
    assert len(provider.calls) == 1


@pytest.mark.parametrize("moment", ["before it is handed over", "after it was handed over"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_mail_whose_row_is_deleted_on_its_way_ends(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    handovers: Handovers,
    query: Query,
    moment: str,
    fails: bool,
) -> None:
    provider = Scripted()
    if fails:
        provider.answer = of_silence("TimeoutError", "", began=True)
    email_id = add_email()
    (row,) = outgoing.claim([email_id])
    if moment.startswith("before"):
        query("DELETE FROM emails")
    else:
        send = provider.send

        def deleting(handover: Any) -> Any:
            query("DELETE FROM emails")
            return send(handover)

        provider.send = deleting  # type: ignore[method-assign]
    new_deliverer(provider).deliver(email_of(row))
    handovers.look()
    assert len(provider.calls) <= 1
    assert not handovers._claims
    assert not handovers._left_over
    assert not handovers._refused
    assert len(outgoing._leases) == 0
    assert query("SELECT count(*) FROM email_events") == [(0,)]


@pytest.mark.parametrize("column", ["text", "html", "attachments"])
def test_a_large_mail_whose_row_is_deleted_before_it_is_read_is_not_sent_empty(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    handovers: Handovers,
    query: Query,
    column: str,
) -> None:
    """Its texts are not in memory, as those of a small one are."""
    provider, large = Scripted(), "x" * 2 * HELD_OCTETS
    contents: dict[str, Any] = {column: [{"filename": "a", "content": large}] if column == "attachments" else large}
    query("ALTER TABLE emails ALTER attachments SET STORAGE EXTERNAL")
    (row,) = outgoing.claim([add_email(**contents)])
    query("DELETE FROM emails")
    new_deliverer(provider).deliver(email_of(row))
    assert email_of(row).large
    assert provider.calls == []
    assert not handovers._claims


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", TRIGGERS)
def test_an_old_claim_that_cannot_be_given_back_keeps_no_other_and_is_said_once(
    add_email: Callable[..., str],
    left: LeftRows,
    without_redis: ClaimStates,
    postgres_url: str,
    query: Query,
    what: str,
) -> None:
    long_ago = "2020-01-01T00:00:00Z"
    ids = [add_email(status="processing", provider_last_attempted_at=long_ago) for _ in range(20)]
    old = [add_email(status="processing", provider_last_attempted_at=long_ago, created_at=long_ago) for _ in range(3)]
    for email_id in old:
        query(
            "INSERT INTO email_events (id, email_id, type, payload) VALUES (gen_random_uuid(), %s, 'delivered', '{}')",
            email_id,
        )
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=1, switched_off=PLANNER)
    left_behind = LeftBehind(left, without_redis)
    bad = [ids[7], old[1]]
    with trigger(query, what, f"NEW.id IN ('{bad[0]}', '{bad[1]}')"), capture_logs() as lines:
        for _ in range(passed_over._SAID_AFTER + 3):
            left_behind.settle(WaitingRows(database).processing(100))
            left_behind.end_round()
            left_behind._held.clear()
            gevent.sleep(0.06)
        assert query("SELECT id::text FROM emails WHERE status = 'processing' ORDER BY created_at DESC") == [
            (email_id,) for email_id in bad
        ]
    assert len(said(lines, "abandoned_claims")) == 1
    assert {line["email_id"]: line["step"] for line in said(lines, "rows_passed_over")} == dict.fromkeys(
        bad, "give_back"
    )
    assert sum(line["count"] for line in said(lines, "rows_passed_over")) == len(bad)
    left_behind.settle(WaitingRows(database).processing(100))
    database.close()
    assert query("SELECT status, count(*) FROM emails GROUP BY 1 ORDER BY 1") == [("queued", 20), ("sent", 3)]


def test_events_of_mails_that_stay_share_a_statement(asking: Outgoing, query: Query, counted: Counted) -> None:
    query(
        "INSERT INTO webhooks (id, url, event_types, user_id)"
        " VALUES (gen_random_uuid(), 'https://x.example', '[\"email.suppressed\"]', 'user')"
    )
    ids = add(query, 50)
    gone = "0e0f7a3c-7d39-4c6e-9b3f-1a2b3c4d5e6f"
    events = {email_id: Event("suppressed", f"suppressed:{email_id}", {"text": "a\x00b"}) for email_id in [*ids, gone]}
    asking.record(ids[0], events[ids[0]])
    counted.statements.clear()
    said_by = [gevent.spawn(asking.record, email_id, event) for email_id, event in events.items()]
    gevent.joinall(said_by, timeout=30, raise_error=True)
    # One for all, and one more for the mail that is gone.
    assert sum(counted.statements.values()) <= 3, counted.statements
    found = Counter(str(email_id) for (email_id,) in query("SELECT email_id FROM email_events"))
    assert found == Counter(ids)
    assert query("SELECT count(*) FROM webhook_deliveries") == [(50,)]
    assert query("SELECT status, count(*) FROM emails GROUP BY 1") == [("queued", 50)]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("mode", "seed"), [("postgres", 1), ("queue", 2)])
def test_no_sequence_of_triggers_locks_and_deletions_sends_a_mail_twice_or_leaves_it(
    counted: Counted, query: Query, postgres_url: str, tmp_path: Path, mode: str, seed: int
) -> None:
    """Each trouble is about some rows and some changes of them; both ends have a ledger."""
    chance = random.Random(seed)
    outgoing, provider = Outgoing(counted, deadline=1.0), Provider()
    ids = [email_id for user in ("one", "two", "three") for email_id in add(query, 20, user=user)]
    gone: set[str] = set()
    jobs = Jobs(ids) if mode == "queue" else None
    dispatcher = dispatcher_of(counted, outgoing, provider, jobs, folder=tmp_path, places=8)
    handovers = dispatcher._deliverer._handovers

    def look() -> None:
        for each in handovers._refused.values():
            each.at = 0.0
        with suppress(PostgresUnavailable):
            handovers.look()

    dispatcher.start()
    with psycopg2.connect(postgres_url) as holder, holder.cursor() as cursor:
        for _ in range(12):
            some = ", ".join(f"'{email_id}'" for email_id in chance.sample(ids, 15))
            change = chance.choice(
                ["NEW.status = 'processing'", "NEW.status = 'sent'", "NEW.status = 'queued'", "true"]
            )
            with trigger(query, chance.choice([*TRIGGERS]), f"NEW.id IN ({some}) AND {change}"):
                cursor.execute(
                    "SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE SKIP LOCKED", (chance.sample(ids, 3),)
                )
                gevent.sleep(0.1 * chance.random())
                look()
                holder.rollback()
            (deleted,) = chance.sample(ids, 1)
            # Locked first, so that no event of it comes between.
            found = query(
                "SELECT FROM emails WHERE id = %s FOR UPDATE; DELETE FROM email_events WHERE email_id = %s;"
                " DELETE FROM emails WHERE id = %s RETURNING id::text",
                *([deleted] * 3),
            )
            gone |= {email_id for (email_id,) in found}
    holder.close()

    def over() -> bool:
        look()
        return query("SELECT count(*) FROM emails WHERE status <> 'sent'") == [(0,)]

    until(over)
    assert dispatcher.drain(30.0) == 0
    outgoing.close()
    ledger = Counter(provider.mails)
    assert max(ledger.values()) == 1
    assert {*ids} - gone <= ledger.keys()
    events = Counter(source for (source,) in query("SELECT source_id FROM email_events"))
    assert {f"provider-sent:{email_id}" for email_id in {*ids} - gone} <= events.keys()
    assert not handovers._claims
    assert not handovers._refused
    if jobs is not None:
        assert sorted(jobs.deleted) == sorted(ids)
