"""Rows that end as bounced, suppressed or simulated share statements, and have nothing else to do with each other."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import psycopg2
import pytest

from relay.core.errors import PostgresRefused
from relay.postgres.closed_rows import BouncedRow, ClosedRow, UnsentRow
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import Event, SentRow
from relay.postgres.waiting import PLANNER
from scripts.database import create_webhook
from tests.integration.delivery.test_statements import STATUSES, Counted, Query, add, held, state

MAILS = 50
KINDS = ("bounced", "suppressed", "simulated")


@pytest.fixture
def counted(postgres_url: str, green_psycopg: None) -> Iterator[Counted]:
    database = Counted(postgres_url, switched_off=PLANNER, lock_seconds=0.05)
    yield database
    database.close()


@pytest.fixture
def query(postgres_url: str) -> Iterator[Query]:
    """As the other one, on one connection: these tests ask often."""
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True

    def run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    yield run
    connection.close()


@pytest.fixture
def due() -> list[bool]:
    """How often it was said that webhook deliveries are due."""
    return []


@pytest.fixture
def asking(counted: Counted, due: list[bool]) -> Iterator[Outgoing]:
    outgoing = Outgoing(counted, deadline=20.0, deliveries_due=lambda: due.append(True))
    yield outgoing
    outgoing.close()


def closed(asking: Outgoing, email_id: str, kind: str, *, to: Sequence[str] = ("to@x.example",)) -> ClosedRow:
    """What the worker records of a mail."""
    text = {"text": "a 'quoted' \\ \x00 {\u20ac}"}
    mark = asking.mark(email_id)
    if kind == "bounced":
        words = ("sent", "bounced", "delayed")
        return BouncedRow(email_id, [Event(word, f"{word}:{email_id}", text) for word in words])
    if kind == "suppressed":
        return UnsentRow(email_id, mark, kind, [Event(kind, f"{kind}:{email_id}", text)])
    events = [Event(word, f"{word}:{email_id}", text) for word in ("sent", "complained")]
    return UnsentRow(email_id, mark, "complained", events, addresses=to, reason="complained")


def end_all(asking: Outgoing, rows: Sequence[SentRow | ClosedRow]) -> list[gevent.Greenlet[..., None]]:
    ended = [gevent.spawn(asking.ended, row) for row in rows]
    gevent.joinall(ended, timeout=30)
    return ended


def suppressions(query: Query) -> list[tuple[Any, ...]]:
    return query(
        "SELECT user_id, email, reason, source_event_id, source_email_id::text, source_message_id, metadata"
        " FROM email_suppressions ORDER BY 1, 2"
    )


def test_fifty_of_each_kind_at_once_are_a_few_statements(counted: Counted, asking: Outgoing, query: Query) -> None:
    ids = add(query, 3 * MAILS)
    assert len(asking.claim(ids)) == len(ids)
    asking.ended(closed(asking, ids[0], "bounced"))  # the connection is made
    counted.statements.clear()
    end_all(asking, [closed(asking, email_id, KINDS[number % 3]) for number, email_id in enumerate(ids)])
    assert query("SELECT status, count(*) FROM emails GROUP BY 1 ORDER BY 1") == [
        ("bounced", MAILS),
        ("complained", MAILS),
        ("suppressed", MAILS),
    ]
    assert query("SELECT count(*) FROM email_events") == [(6 * MAILS,)]
    # One for each kind, and where another begins to be gathered meanwhile.
    assert sum(counted.statements.values()) <= 4, counted.statements


@pytest.mark.parametrize("seed", range(2))
def test_rows_of_one_statement_are_recorded_as_each_alone(
    asking: Outgoing, query: Query, postgres_url: str, due: list[bool], seed: int
) -> None:
    """Of every status, claimed by this process or no longer, with webhooks, known events and known addresses."""
    chance = random.Random(seed)
    for user, types in (("one", ["email.bounced"]), ("two", ["email.complained", "email.suppressed"])):
        create_webhook(postgres_url, *types, user_id=user)
        query(
            "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, 'old@x.example', 'manual', now(), now())",
            user,
        )
    addresses = ["old@x.example", " New@X.example ", "new@x.example", "long@" + "x" * 600, "other@x.example"]
    pairs: list[tuple[str, str, str, list[str]]] = []
    for number in range(24):
        together, alone = ids = add(query, 2, chance.choice(["one", "two", "nobody", ""]))
        assert len(asking.claim(ids)) == 2
        for email_id in ids:
            if number % 3 == 2:
                query("UPDATE emails SET status = %s WHERE id = %s", STATUSES[number // 3 % len(STATUSES)], email_id)
            if number % 8 == 7:
                query("UPDATE emails SET provider_last_attempted_at = now() WHERE id = %s", email_id)
            if number % 5 == 4:
                query(
                    "INSERT INTO email_events (id, source_id, type, payload) VALUES (gen_random_uuid(), %s, 'x', '{}')",
                    f"sent:{email_id}",
                )
        pairs.append((together, alone, chance.choice(KINDS), chance.sample(addresses, 3)))

    for _, alone, kind, to in pairs:
        asking.ended(closed(asking, alone, kind, to=to), alone=True)
    by_themselves = suppressions(query)
    query("UPDATE email_suppressions SET reason = 'manual' WHERE email = 'old@x.example'")
    query("DELETE FROM email_suppressions WHERE email <> 'old@x.example'")
    due.clear()
    locked = [together for together, _, _, _ in pairs if chance.random() < 0.2]
    rows = [closed(asking, together, kind, to=to) for together, _, kind, to in pairs if together not in locked]
    late = [closed(asking, together, kind, to=to) for together, _, kind, to in pairs if together in locked]
    with held(postgres_url, "SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE", locked):
        waiting = [gevent.spawn(asking.ended, row) for row in late]
        assert all(each.successful() for each in end_all(asking, rows))
    gevent.joinall(waiting, timeout=20, raise_error=True)
    assert due
    others = {alone: together for together, alone, _, _ in pairs}
    assert state(query, list(others.values())) == state(query, list(others))
    # Of an address that stands in several mails the last one counts, whichever that is among those that came late.
    said = {(user, email, reason) for user, email, reason, *_ in suppressions(query)}
    assert said == {(user, email, reason) for user, email, reason, *_ in by_themselves}
    for _, _, reason, source, email_id, message_id, metadata in suppressions(query):
        if reason == "manual":
            continue
        assert (source, message_id) == (f"complained:{email_id}", f"sandbox-{email_id}")
        assert email_id in others.values()
        assert metadata == {
            "source": "ses",
            "sourceEventId": source,
            "sourceEmailId": email_id,
            "sourceMessageId": message_id,
        }


def test_of_an_address_in_several_mails_of_a_statement_the_last_one_counts(asking: Outgoing, query: Query) -> None:
    ids = add(query, 5)
    asking.claim(ids)
    rows = [closed(asking, email_id, "simulated", to=["To@x.example", "to@x.example"]) for email_id in ids]
    assert asking._ended_rows.record_together(rows) == [True] * 5
    ((_, _, _, source, *_),) = suppressions(query)
    assert source == f"complained:{ids[-1]}"


def test_webhook_deliveries_of_a_shared_statement_are_said_to_be_due(
    asking: Outgoing, query: Query, due: list[bool], postgres_url: str
) -> None:
    ids = add(query, 3)
    asking.claim(ids)
    rows = [closed(asking, email_id, "suppressed") for email_id in ids]
    assert asking._ended_rows.record_together(rows[:1]) == [True]
    assert due == []
    create_webhook(postgres_url, "email.suppressed")
    assert asking._ended_rows.record_together(rows[1:]) == [True, True]
    assert due == [True]


def test_a_refused_recipient_moves_a_status_forward_alone(asking: Outgoing, query: Query) -> None:
    """The provider has the mail, whichever process has its row by now."""
    ids = dict(zip(STATUSES, add(query, len(STATUSES)), strict=True))
    for status, email_id in ids.items():
        query("UPDATE emails SET status = %s WHERE id = %s", status, email_id)
    end_all(asking, [closed(asking, email_id, "bounced") for email_id in ids.values()])
    found = query("SELECT e.id::text, status, (SELECT count(*) FROM email_events WHERE email_id = e.id) FROM emails e")
    statuses = {email_id: (status, events) for email_id, status, events in found}
    ends = {"processing": "bounced", "queued": "bounced", "sent": "bounced"}
    left_alone = ("failed", "canceled", "suppressed")
    assert {status: statuses[email_id] for status, email_id in ids.items()} == {
        status: (ends.get(status, status), 0 if status in left_alone else 3) for status in STATUSES
    }


REFUSED = {
    "its row": "BEFORE UPDATE ON emails FOR EACH ROW WHEN (NEW.id = '{bad}')",
    "its event": "BEFORE INSERT ON email_events FOR EACH ROW WHEN (NEW.email_id = '{bad}' AND NEW.type <> 'sent')",
    "its suppression": "BEFORE INSERT ON email_suppressions FOR EACH ROW WHEN (NEW.email = 'bad@x.example')",
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("bounced", "its event"),
        ("suppressed", "its row"),
        ("simulated", "its event"),
        ("simulated", "its suppression"),
    ],
)
def test_one_row_of_fifty_that_is_refused_keeps_no_other_and_nothing_of_it_is_recorded(
    asking: Outgoing, query: Query, kind: str, what: str
) -> None:
    ids = add(query, MAILS)
    bad = ids[MAILS // 2]
    asking.claim(ids)
    query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
        f" CREATE TRIGGER refuse {REFUSED[what].format(bad=bad)} EXECUTE FUNCTION refuse()"
    )
    rows = [closed(asking, each, kind, to=["bad@x.example" if each == bad else f"{each}@x.example"]) for each in ids]
    ended = dict(zip(ids, end_all(asking, rows), strict=True))
    assert [type(each.exception) for each in ended.values() if not each.successful()] == [PostgresRefused]
    assert not ended[bad].successful()
    assert dict(query("SELECT id::text, status FROM emails WHERE status = 'processing'")) == {bad: "processing"}
    assert query("SELECT count(*) FROM email_events WHERE email_id = %s", bad) == [(0,)]
    assert len(suppressions(query)) == (MAILS - 1 if kind == "simulated" else 0)


def test_a_row_whose_event_has_no_room_keeps_no_other_from_it(asking: Outgoing, query: Query) -> None:
    ids = add(query, 4)
    asking.claim(ids)
    bad = BouncedRow(ids[0], [Event("sent" * 200, "a type that is too long", {})])
    ended = end_all(asking, [bad, *(closed(asking, each, kind) for each, kind in zip(ids[1:], KINDS, strict=True))])
    assert [each.successful() for each in ended] == [False] + [True] * 3
    assert query("SELECT id::text FROM emails WHERE status = 'processing'") == [(ids[0],)]


@pytest.mark.parametrize(
    "lock",
    ["SELECT FROM emails WHERE id = '{bad}' FOR UPDATE", "UPDATE email_suppressions SET reason = 'manual'"],
)
def test_a_lock_on_what_one_row_changes_holds_up_no_other(
    asking: Outgoing, query: Query, postgres_url: str, lock: str
) -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
        " VALUES (gen_random_uuid(), 'user', 'bad@x.example', 'manual', now(), now())"
    )
    ids = add(query, 10)
    bad = ids[3]
    asking.claim(ids)
    rows = {
        each: closed(asking, each, "simulated", to=["bad@x.example" if each == bad else f"{each}@x.example"])
        for each in ids
    }
    with held(postgres_url, lock.format(bad=bad)):
        ended = {email_id: gevent.spawn(asking.ended, row) for email_id, row in rows.items()}
        gevent.joinall([ended[email_id] for email_id in ids if email_id != bad], timeout=3.5, raise_error=True)
        assert [email_id for email_id in ids if not ended[email_id].dead] == [bad]
    ended[bad].get(timeout=20)
    assert query("SELECT status, count(*) FROM emails GROUP BY 1") == [("complained", 10)]


def test_a_mail_to_thousands_shares_no_statement(asking: Outgoing, query: Query) -> None:
    """Two hundred of them would take hundreds of megabytes. As many as a row can name are known by the second time."""
    ids = add(query, 2)
    asking.claim(ids)
    large = [f"complained+{number}@resend.dev" for number in range(3000)]
    shared: list[int] = []
    together = asking._ended_rows.record_together
    asking._ended._together = lambda rows: shared.append(len(rows)) or together(rows)  # type: ignore[func-returns-value]
    for email_id in ids:
        asking.ended(closed(asking, email_id, "simulated", to=large))
    assert shared == []
    assert query("SELECT source_email_id::text, count(*) FROM email_suppressions GROUP BY 1") == [(ids[1], 3000)]
