"""Mails that the provider may have: events are asked first, then they are sent again, fail, or wait for a command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest

from relay.core import metrics
from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import EVENT_SECONDS
from relay.delivery.outcome import of_silence
from relay.delivery.row import email_of
from relay.delivery.unclear import LeftBehind, Unclear
from relay.postgres.database import Database
from relay.postgres.left_rows import UNCLEAR, UNCLEAR_TEXT, LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, WaitingRows
from relay.redis.claim_states import ClaimStates
from tests.support.scripted_provider import Scripted

ROOT = Path(__file__).resolve().parents[3]
Query = Callable[..., list[tuple[Any, ...]]]
Made = Callable[..., Deliverer]


@pytest.fixture
def provider() -> Scripted:
    return Scripted()


@pytest.fixture
def made(left: LeftRows, new_deliverer: Callable[..., Deliverer], provider: Scripted) -> Made:
    def make(rule: Any = "again", *, records_sent: bool = True, max_attempts: int = 3) -> Deliverer:
        return new_deliverer(
            provider, max_attempts=max_attempts, records_sent=lambda _: records_sent, unclear=Unclear(left, rule)
        )

    return make


def deliver(deliverer: Deliverer, outgoing: Outgoing, email_id: str) -> None:
    for row in outgoing.claim([email_id]):
        deliverer.deliver(email_of(row))


def status(query: Query, email_id: str) -> str:
    return str(query("SELECT status FROM emails WHERE id = %s", email_id)[0][0])


def add_event(query: Query, email_id: str, kind: str) -> None:
    query(
        "INSERT INTO email_events (id, email_id, source_id, type, payload, user_id)"
        " VALUES (gen_random_uuid(), %s, %s, %s, '{}', 'user')",
        email_id,
        str(uuid.uuid4()),
        kind,
    )


def counts() -> Counter[str]:
    """How many unclear mails were found, and what became of how many, so far."""
    words = ("found", "proven", "again", "failed", "held")
    return Counter({word: int(metrics.DELIVERY_UNCLEAR.labels(word).value) for word in words})


PROOFS = ("sent", "delivered", "bounced", "complained", "delivery_delayed")


@pytest.mark.parametrize("old", [False, True], ids=["recent", "old"])
@pytest.mark.parametrize("rule", ["again", "fail"])
def test_what_becomes_of_a_mail_that_the_provider_may_have(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    made: Made,
    provider: Scripted,
    query: Query,
    rule: str,
    old: bool,
) -> None:
    created = "2020-01-01T00:00:00Z" if old else "now"
    deliverer = made(rule)
    for event in (None, *PROOFS, "opened", "clicked", "delayed", "failed"):
        email_id = add_email(provider_last_error_code=UNCLEAR, provider_last_error_message="", created_at=created)
        if event:
            add_event(query, email_id, event)
        expected = "sent" if event in PROOFS else "processing" if old else "sent" if rule == "again" else "failed"
        provider.calls.clear()
        deliver(deliverer, outgoing, email_id)
        ((found, code, waits),) = query(
            "SELECT status, provider_last_error_code, provider_next_retry_at FROM emails WHERE id = %s", email_id
        )
        assert (found, code, waits) == (expected, None if expected == "sent" else UNCLEAR, None), event
        assert len(provider.calls) == (expected == "sent" and event not in PROOFS), event
        endings = query("SELECT count(*) FROM email_events WHERE source_id = %s", f"provider-dead-letter:{email_id}:1")
        assert endings == [(expected == "failed",)], event


@pytest.mark.parametrize("days", [-3, 3])
def test_how_old_a_mail_is_postgress_clock_says(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    made: Made,
    provider: Scripted,
    query: Query,
    days: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This machine's clock may be wrong by days."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Wrong:
            return cls.fromtimestamp(time.time() + days * 86_400, tz)

    for module in ("deliverer", "unclear"):
        monkeypatch.setattr(f"relay.delivery.{module}.datetime", Wrong)
    recent, old = (add_email(provider_last_error_code=UNCLEAR, created_at=created) for created in ("now", "yesterday"))
    query("UPDATE emails SET created_at = now() - interval '25 hours' WHERE id = %s", old)
    for email_id in (recent, old):
        deliver(made(), outgoing, email_id)
    assert (status(query, recent), status(query, old)) == ("sent", "processing")
    assert len(provider.calls) == 1


@pytest.mark.parametrize("records_sent", [False, True])
def test_a_lost_answer_makes_a_mail_unclear_and_an_event_that_comes_ends_it(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    made: Made,
    provider: Scripted,
    query: Query,
    records_sent: bool,
) -> None:
    email_id = add_email()
    deliverer = made(records_sent=records_sent)
    provider.answer = of_silence("TimeoutError", "", began=True)
    deliver(deliverer, outgoing, email_id)
    assert status(query, email_id) == "queued"
    ((waits, code),) = query(
        "SELECT provider_next_retry_at > now() + %s::interval, provider_last_error_code FROM emails",
        f"{EVENT_SECONDS - 30:.0f} s",
    )
    assert (waits, code) == (not records_sent, UNCLEAR)
    add_event(query, email_id, "sent")
    query("UPDATE emails SET provider_next_retry_at = now()")
    deliver(deliverer, outgoing, email_id)
    assert status(query, email_id) == "sent"
    assert len(provider.calls) == 1


def test_each_is_counted_where_it_is_found_and_where_it_ends(
    add_email: Callable[..., str], outgoing: Outgoing, made: Made, provider: Scripted, query: Query
) -> None:
    before, usual = counts(), provider.answer
    provider.answer = of_silence("TimeoutError", "", began=True)
    there, again, failed, held = ids = [add_email() for _ in range(4)]
    for email_id in ids:
        deliver(made(), outgoing, email_id)
    assert counts() - before == Counter(found=4)
    provider.answer = usual
    query("UPDATE emails SET provider_next_retry_at = now()")
    query("UPDATE emails SET created_at = now() - interval '25 hours' WHERE id = %s", held)
    add_event(query, there, "delivered")
    for email_id in (there, again, held):
        deliver(made(), outgoing, email_id)
    deliver(made("fail"), outgoing, failed)
    assert counts() - before == Counter(found=4, proven=1, again=1, failed=1, held=1)


def test_the_last_attempt_of_an_unclear_mail_ends_after_events_were_asked(
    add_email: Callable[..., str], outgoing: Outgoing, made: Made, provider: Scripted, query: Query
) -> None:
    deliverer = made(max_attempts=1)
    deliver(deliverer, outgoing, add_email())  # the region is well
    there, lost = add_email(), add_email()
    provider.answer = of_silence("TimeoutError", "", began=True)
    deliver(deliverer, outgoing, there)
    assert query("SELECT status, provider_retry_count FROM emails WHERE id = %s", there) == [("queued", 1)]
    deliver(made(max_attempts=1), outgoing, lost)
    query("UPDATE emails SET provider_retry_count = 1, provider_next_retry_at = now() WHERE status = 'queued'")
    add_event(query, there, "sent")
    for email_id in (there, lost):
        deliver(deliverer, outgoing, email_id)
    assert (status(query, there), status(query, lost)) == ("sent", "failed")
    assert len(provider.calls) == 3


def test_abandoned_claims_are_unclear_and_old_ones_are_held(
    add_email: Callable[..., str],
    left: LeftRows,
    without_redis: ClaimStates,
    postgres_url: str,
    query: Query,
) -> None:
    long_ago = "2020-01-01T00:00:00Z"
    recent = add_email(status="processing", provider_last_attempted_at=long_ago)
    held, proven = (
        add_email(status="processing", provider_last_attempted_at=long_ago, created_at=long_ago) for _ in range(2)
    )
    add_event(query, proven, "delivered")
    before = counts()
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=1, switched_off=PLANNER)
    left_behind = LeftBehind(left, without_redis)
    for _ in range(3):
        left_behind.settle(WaitingRows(database).processing(100))
        left_behind.end_round()
    database.close()
    assert [status(query, each) for each in (recent, held, proven)] == ["queued", "processing", "sent"]
    assert query("SELECT provider_last_error_code, provider_last_error_message FROM emails WHERE id = %s", recent) == [
        (UNCLEAR, UNCLEAR_TEXT)
    ]
    assert left_behind._held.keys() == {held}
    assert counts() - before == Counter(found=2, proven=1)


def test_what_cannot_be_sent_now_goes_back_in_one_statement(
    add_email: Callable[..., str], outgoing: Outgoing, made: Made, provider: Scripted, query: Query, monkeypatch: Any
) -> None:
    deliverer = made()
    provider.answer = of_silence("ConnectionRefusedError", "", began=False)
    deliver(deliverer, outgoing, add_email())  # the region rests
    statements = []
    give_back = LeftRows.give_back
    monkeypatch.setattr(LeftRows, "give_back", lambda each, rows: statements.append(len(rows)) or give_back(each, rows))
    # What is asked before it is known that they can't be sent takes its time, each for itself.
    monkeypatch.setattr("relay.delivery.records._TOGETHER_SECONDS", 1.0)
    deliverer = made()
    deliver(deliverer, outgoing, add_email())
    rows = outgoing.claim([add_email() for _ in range(30)])
    statements.clear()
    gevent.joinall([gevent.spawn(deliverer.deliver, email_of(row)) for row in rows], raise_error=True)
    assert statements == [30]
    assert query("SELECT count(*) FROM emails WHERE status = 'queued' AND provider_last_error_code IS NULL") == [(32,)]


@pytest.mark.parametrize("trouble", ["a lock", "a trigger"])
def test_a_row_that_cannot_go_back_keeps_no_other_from_it(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    made: Made,
    provider: Scripted,
    query: Query,
    postgres_url: str,
    trouble: str,
) -> None:
    deliverer = made()
    provider.answer = of_silence("ConnectionRefusedError", "", began=False)
    deliver(deliverer, outgoing, add_email())  # the region rests
    bad, *others = ids = [add_email() for _ in range(6)]
    rows = outgoing.claim(ids)
    with psycopg2.connect(postgres_url) as holder, holder.cursor() as cursor:
        if trouble == "a lock":
            cursor.execute("SELECT FROM emails WHERE id = %s FOR UPDATE", (bad,))
        else:
            cursor.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
                "CREATE TRIGGER refuse BEFORE UPDATE ON emails FOR EACH ROW"
                f" WHEN (NEW.id = '{bad}' AND NEW.status = 'queued') EXECUTE FUNCTION refuse()"
            )
            holder.commit()
        gevent.joinall([gevent.spawn(deliverer.deliver, email_of(row)) for row in rows], timeout=60)
        assert {status(query, email_id) for email_id in others} == {"queued"}
        assert status(query, bad) == "processing"


def test_the_command_lists_releases_and_fails_what_is_held(
    add_email: Callable[..., str], postgres_url: str, query: Query, tmp_path: Path
) -> None:
    long_ago = "2020-01-01T00:00:00Z"
    release, fail = (
        add_email(status="processing", provider_last_attempted_at=long_ago, created_at=long_ago, subject="secret")
        for _ in range(2)
    )
    opensends = add_email(status="processing", created_at=long_ago)
    recent = add_email(status="processing", provider_last_attempted_at=long_ago)
    at_work = add_email(status="processing", created_at=long_ago)
    query("UPDATE emails SET provider_last_attempted_at = now() WHERE id = %s", at_work)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DATABASE_URL": postgres_url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "relay.delivery", "--unclear", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)

    listed = run()
    assert listed.returncode == 0, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()} == {release, fail, opensends}
    assert "secret" not in listed.stdout
    assert "x.example" not in listed.stdout
    assert run("--release", release).returncode == 0
    assert run("--fail", fail).returncode == 0
    assert run("--release", recent).returncode == run("--fail", at_work).returncode == 1
    assert run("--release", "no uuid").returncode == run("--what", release).returncode == 2
    assert [status(query, each) for each in (release, fail, opensends, recent, at_work)] == [
        *("queued", "failed", "processing", "processing", "processing")
    ]
    assert query("SELECT type, payload->>'reason' FROM email_events") == [("failed", "delivery_unclear")]
