"""Rows get in once, together or not at all, whatever else is written and whatever Postgres is doing."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest

from relay.core.address import BadAddress, normalise_domain
from relay.core.api_keys import NO_DOMAIN
from relay.core.errors import Unavailable
from relay.core.records import EmailRow, StoredAttachment
from relay.postgres.database import Database
from relay.postgres.group_commit import Outcome, Repeated, Stored, Suppressed, _WriterConnection
from relay.postgres.insert_emails import encode
from relay.postgres.store import Store
from scripts.database import NewApiKey, apply_schema, create_webhook, execute
from scripts.services import Postgres, free_port, processes

MakeRow = Callable[..., EmailRow]
Query = Callable[..., list[dict[str, Any]]]

#: What a client may have to wait when Postgres is in trouble, plus what a busy machine adds.
LIMIT = 5.0 + 2.0


def suppress(query: Query, email: str, *, user_id: str = "user", reason: str = "bounced") -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), %s, %s, %s)",
        user_id,
        email,
        reason,
    )


def outcomes(store: Store, rows: list[EmailRow]) -> list[Outcome | Unavailable]:
    """What becomes of messages of one row each that are inserted at the same moment."""

    def insert(row: EmailRow) -> Outcome | Unavailable:
        try:
            return store.insert([row], [address.lower() for address in row.recipients])
        except Unavailable as unavailable:
            return unavailable

    greenlets = [gevent.spawn(insert, row) for row in rows]
    gevent.joinall(greenlets, raise_error=True, timeout=60)
    return [greenlet.value for greenlet in greenlets]


def test_every_column_is_as_the_contract_has_it(store: Store, make_row: MakeRow, query: Query) -> None:
    row = make_row(
        to=("a@x.example",),
        cc=("b@x.example",),
        bcc=("c@x.example", "d@x.example"),
        reply_to=("e@x.example",),
        subject="Grüße $$ 'quoted' \\ \"too\"",
        html="<p>$r$ ünï \U0001f600</p>",
        text="line\nline\n",
        headers={"X-One": "1", "List-Id": "<l.example>"},
        attachments=(
            StoredAttachment("ä.txt", "aGk=", "text/plain", "cid@x"),
            StoredAttachment("plain.bin", "AAEC"),
        ),
        tags=(("kind", "welcome"),),
        idempotency_key="once",
    )
    assert store.insert([row], ["a@x.example"]) == Stored()
    (stored,) = query("SELECT * FROM emails")
    assert {name: value for name, value in stored.items() if value is not None and name != "created_at"} == {
        "id": row.id,
        "from": "Ann <ann@example.com>",
        "to": ["a@x.example"],
        "cc": ["b@x.example"],
        "bcc": ["c@x.example", "d@x.example"],
        "reply_to": ["e@x.example"],
        "subject": row.subject,
        "html": row.html,
        "text": row.text,
        "status": "queued",
        "headers": {"X-One": "1", "List-Id": "<l.example>"},
        "attachments": [
            {"filename": "ä.txt", "content": "aGk=", "content_type": "text/plain", "content_id": "cid@x"},
            {"filename": "plain.bin", "content": "AAEC"},
        ],
        "tags": [{"name": "kind", "value": "welcome"}],
        "user_id": "user",
        "idempotency_key": "once",
        "provider_retry_count": 0,
    }


def test_what_postgres_cannot_hold_is_dropped(store: Store, make_row: MakeRow, query: Query) -> None:
    row = make_row(subject="a\0b", text="half \ud800 pair", html="a \\u0000 stays", headers={"X-N\0": "v\0"})
    assert store.insert([row], []) == Stored()
    (stored,) = query("SELECT subject, text, html, headers FROM emails")
    assert stored == {"subject": "ab", "text": "half  pair", "html": "a \\u0000 stays", "headers": {"X-N": "v"}}


def test_many_messages_share_a_statement_and_get_their_own_answers(
    store: Store, make_row: MakeRow, query: Query
) -> None:
    suppress(query, "bad@x.example", reason="complained")
    rows = [make_row(to=("bad@x.example" if number % 10 == 0 else f"{number}@x.example",)) for number in range(100)]
    answers = outcomes(store, rows)
    assert Counter(type(answer) for answer in answers) == {Stored: 90, Suppressed: 10}
    assert all(a == Suppressed({"bad@x.example": "complained"}) for a in answers if isinstance(a, Suppressed))
    assert query("SELECT count(*) AS n, count(DISTINCT xmin::text) AS commits FROM emails")[0]["n"] == 90
    assert query("SELECT count(DISTINCT xmin::text) AS commits FROM emails")[0]["commits"] < 20


def test_a_row_that_postgres_refuses_does_not_fail_its_neighbours(
    store: Store, make_row: MakeRow, query: Query
) -> None:
    rows = [make_row(sender="x" * 600 if number in {7, 8, 30} else "a@example.com") for number in range(40)]
    answers = outcomes(store, rows)
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, Unavailable)]
    assert refused == [7, 8, 30]
    assert not any(answer.unclear for answer in answers if isinstance(answer, Unavailable))
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 37


def test_an_idempotency_key_stores_one_row_however_many_come_at_once(
    store: Store, make_row: MakeRow, query: Query
) -> None:
    answers = outcomes(store, [make_row(idempotency_key=f"key-{number % 3}") for number in range(60)])
    stored = query("SELECT id, idempotency_key FROM emails")
    assert len(stored) == 3
    assert sum(isinstance(answer, Stored) for answer in answers) == 3
    ids = {row["idempotency_key"]: row["id"] for row in stored}
    for number, answer in enumerate(answers):
        assert isinstance(answer, Stored) or answer == Repeated(ids[f"key-{number % 3}"])


def test_an_idempotency_key_is_the_users_own(store: Store, make_row: MakeRow) -> None:
    for user_id in ("one", "two"):
        assert store.insert([make_row(user_id=user_id, idempotency_key="k")], []) == Stored()


def test_two_processes_that_use_the_same_keys_do_not_lock_each_other_out(
    postgres_url: str, store: Store, make_row: MakeRow, query: Query
) -> None:
    other = Store(postgres_url)
    keys = [f"key-{number}" for number in range(50)]
    one = gevent.spawn(outcomes, store, [make_row(idempotency_key=key) for key in keys])
    two = gevent.spawn(outcomes, other, [make_row(idempotency_key=key) for key in reversed(keys)])
    gevent.joinall([one, two], timeout=60, raise_error=True)
    assert Counter(type(answer) for answer in one.value + two.value) == {Stored: 50, Repeated: 50}
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 50
    other.close()


def test_an_idempotency_key_is_released_after_a_day(store: Store, make_row: MakeRow, query: Query) -> None:
    first, second, third = (make_row(idempotency_key="k") for _ in range(3))
    assert store.insert([first], []) == Stored()
    query("UPDATE emails SET created_at = now() - interval '23 hours 59 minutes'")
    assert store.insert([second], []) == Repeated(first.id)
    query("UPDATE emails SET created_at = now() - interval '24 hours 1 second'")
    assert store.insert([third], []) == Stored()
    assert {row["id"]: row["idempotency_key"] for row in query("SELECT id, idempotency_key FROM emails")} == {
        first.id: None,
        third.id: "k",
    }


def test_rows_of_one_message_come_together_or_not_at_all(store: Store, make_row: MakeRow, query: Query) -> None:
    def message(**first: Any) -> list[EmailRow]:
        return [make_row(**first), make_row(to=("b@x.example",)), make_row(to=("c@x.example",))]

    recipients = ["to@x.example", "b@x.example", "c@x.example"]
    good = message(idempotency_key="k")
    assert store.insert(good, recipients) == Stored()
    assert store.insert(message(idempotency_key="k"), recipients) == Repeated(good[0].id)
    suppress(query, "c@x.example")
    assert store.insert(message(), recipients) == Suppressed({"c@x.example": "bounced"})
    assert {row["id"] for row in query("SELECT id FROM emails")} == {row.id for row in good}


def test_a_message_of_several_rows_that_postgres_refuses_leaves_nothing_behind(
    store: Store, make_row: MakeRow, query: Query
) -> None:
    with pytest.raises(Unavailable) as caught:
        store.insert([make_row(), make_row(idempotency_key="x" * 300)], [])
    assert not caught.value.unclear
    good = make_row()
    assert store.insert([good], []) == Stored()
    assert [row["id"] for row in query("SELECT id FROM emails")] == [good.id]


def test_a_statement_that_hangs_does_not_stop_the_messages_behind_it(
    store: Store, make_row: MakeRow, postgres_url: str
) -> None:
    """Another transaction is about to store the same idempotency key, and takes long."""
    other = psycopg2.connect(postgres_url)
    with other.cursor() as cursor:
        cursor.execute(
            'INSERT INTO emails (id, "from", "to", subject, user_id, idempotency_key)'
            " VALUES (gen_random_uuid(), 'a@x', '[]', 's', 'user', 'slow')"
        )
    hanging = gevent.spawn(store.insert, [make_row(idempotency_key="slow")], [])
    gevent.sleep(0.3)
    assert outcomes(store, [make_row() for _ in range(20)]) == [Stored()] * 20
    assert not hanging.ready()
    other.rollback()
    other.close()
    assert hanging.get(timeout=LIMIT) == Stored()


def test_a_pooler_that_forgets_prepared_statements_costs_speed_and_nothing_else(
    postgres_url: str, make_row: MakeRow, query: Query
) -> None:
    database = Database(postgres_url, statement_seconds=5, idle_limit=1)
    session = _WriterConnection(database)
    deadline = time.monotonic() + 30
    session.connect(deadline)
    for _ in range(3):
        payload = encode(make_row(), [])
        assert session.run(deadline, lambda cursor, payload=payload: session.insert(cursor, [payload]) == 1)
        session._connection.cursor().execute("DEALLOCATE ALL")
    session.close()
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 3


def test_a_large_message_goes_alone_and_is_exact(store: Store, make_row: MakeRow, query: Query) -> None:
    content = "QUJDRA==" * 1_000_000
    large = make_row(attachments=(StoredAttachment("a.bin", content),), idempotency_key="k")
    small = [make_row() for _ in range(20)]
    assert outcomes(store, [*small[:10], large, *small[10:]]) == [Stored()] * 21
    assert store.insert([make_row(attachments=large.attachments, idempotency_key="k")], []) == Repeated(large.id)
    (stored,) = query("SELECT attachments FROM emails WHERE id = %s", large.id)
    assert stored["attachments"] == [{"filename": "a.bin", "content": content}]
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 21


def test_a_message_that_was_stored_is_stored(store: Store, make_row: MakeRow, query: Query) -> None:
    """As when the answer to a commit got lost: the second try finds the ids there, and that is no repeat."""
    rows = [make_row(idempotency_key="k"), make_row()]
    single = [make_row(idempotency_key="l")]
    for _ in range(2):
        assert store.insert(rows, []) == Stored()
        assert store.insert(single, []) == Stored()
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 3


def test_suppressions_are_the_users_own_and_compared_in_lower_case(
    store: Store, make_row: MakeRow, query: Query
) -> None:
    suppress(query, "a@x.example", user_id="other")
    assert store.insert([make_row(to=("A@x.example",))], ["a@x.example"]) == Stored()
    suppress(query, "a@x.example", reason="manual")
    assert store.insert([make_row(to=("A@x.example",))], ["a@x.example"]) == Suppressed({"a@x.example": "manual"})
    assert store.find_suppressions("user", ["a@x.example", "b@x.example"]) == {"a@x.example": "manual"}


@pytest.mark.parametrize("size", [500, 1_000, 100_000])
def test_the_guard_uses_the_unique_index_of_a_list(store: Store, make_row: MakeRow, query: Query, size: int) -> None:
    """One user has nearly all of the suppressions: neither their list nor the table is ever read as a whole."""
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " SELECT gen_random_uuid(), 'user', 'p' || i || '@x.example', 'bounced' FROM generate_series(1, %s) i",
        size,
    )
    query("ANALYZE email_suppressions")
    query("SELECT pg_stat_force_next_flush()")
    rows = [make_row(to=(f"q{number}@x.example",)) for number in range(300)]
    assert all(answer == Stored() for answer in outcomes(store, rows))
    store.close()  # its statistics are flushed when its session ends
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        query("SELECT pg_stat_clear_snapshot()")
        (use,) = query("SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = 'email_suppressions'")
        if use["idx_scan"] >= 300:
            break
        time.sleep(0.1)
    assert use["idx_scan"] >= 300
    assert use["seq_tup_read"] <= size  # ANALYZE and no more than that


@pytest.mark.parametrize(
    ("column", "restriction"),
    [
        (None, None),
        ("", None),
        ("Example.COM", "example.com"),
        (" example.com ", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("not a domain", NO_DOMAIN),
        ("   ", NO_DOMAIN),
        ("00000000-0000-0000-0000-000000000000", NO_DOMAIN),
    ],
)
def test_what_a_keys_domain_means(
    store: Store, query: Query, make_api_key: Callable[..., NewApiKey], column: str | None, restriction: str | None
) -> None:
    key = make_api_key()
    query("UPDATE api_keys SET domain = %s", column)
    (row,) = query("SELECT token_hash FROM api_keys")
    record = store.find_api_key(row["token_hash"])
    assert record is not None
    assert (record.key.id, record.key.domain, record.domain_column) == (key.id, restriction, column)


def test_a_domains_uuid_is_resolved_among_the_users_own_domains(
    store: Store, query: Query, make_api_key: Callable[..., NewApiKey]
) -> None:
    domain_id = str(uuid.uuid4())
    key = make_api_key(user_id="user", domain=domain_id.upper())
    query("INSERT INTO domains (id, name, status, user_id) VALUES (%s, 'Mail.Example', 'verified', 'user')", domain_id)
    (row,) = query("SELECT token_hash FROM api_keys")
    record = store.find_api_key(row["token_hash"])
    assert record is not None
    assert (record.key.id, record.key.domain) == (key.id, "mail.example")
    query("UPDATE domains SET user_id = 'somebody else'")
    record = store.find_api_key(row["token_hash"])
    assert record is not None
    assert record.key.domain == NO_DOMAIN


def test_no_domain_is_no_domain() -> None:
    with pytest.raises(BadAddress):
        normalise_domain(NO_DOMAIN)


def test_a_key_without_a_user_does_not_authenticate(
    store: Store, query: Query, make_api_key: Callable[..., NewApiKey]
) -> None:
    make_api_key()
    (row,) = query("SELECT token_hash FROM api_keys")
    for nobody in (None, ""):
        query("UPDATE api_keys SET user_id = %s", nobody)
        assert store.find_api_key(row["token_hash"]) is None
    assert store.find_api_key("0" * 64) is None


def test_last_used_at_is_written_once_a_minute(
    store: Store, query: Query, make_api_key: Callable[..., NewApiKey]
) -> None:
    keys = [make_api_key().id for _ in range(3)]
    query("UPDATE api_keys SET last_used_at = now() - interval '59 seconds' WHERE id = %s", keys[1])
    query("UPDATE api_keys SET last_used_at = now() - interval '61 seconds' WHERE id = %s", keys[2])
    store.touch_api_keys(keys)
    ages = {row["id"]: row["age"] for row in query("SELECT id, now() - last_used_at AS age FROM api_keys")}
    assert ages[keys[0]].total_seconds() < 50
    assert ages[keys[1]].total_seconds() >= 59
    assert ages[keys[2]].total_seconds() < 50


def test_a_refusal_is_an_event_and_a_delivery_for_each_webhook_that_wants_it(
    store: Store, query: Query, postgres_url: str
) -> None:
    create_webhook(postgres_url, "email.sent", "email.suppressed", url="wants")
    create_webhook(postgres_url, "email.sent", url="other event")
    create_webhook(postgres_url, "email.suppressed", url="disabled", status="disabled")
    create_webhook(postgres_url, "email.suppressed", url="other user", user_id="other")
    payload = {"reason": "recipient_suppressed", "recipients": [{"email": "a@x.example", "reason": "bounced"}]}
    store.record_suppressed("user", payload)
    (event,) = query("SELECT * FROM email_events")
    assert (event["type"], event["payload"], event["user_id"]) == ("suppressed", payload, "user")
    assert event["email_id"] is None
    assert event["received_at"] is not None
    (delivery,) = query("SELECT d.*, w.url FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id")
    assert (delivery["url"], delivery["event_id"]) == ("wants", event["id"])
    assert (delivery["status"], delivery["attempt"], delivery["status_code"]) == ("pending", 0, None)


def test_overdue_rows_are_those_without_an_attempt(store: Store, make_row: MakeRow, query: Query) -> None:
    rows = [make_row() for _ in range(7)]
    for row in rows:
        store.insert([row], [])
    query("UPDATE emails SET created_at = now() - interval '1 hour'")
    query("UPDATE emails SET created_at = now() - interval '14 minutes' WHERE id = %s", rows[0].id)
    query("UPDATE emails SET status = 'sent' WHERE id = %s", rows[1].id)
    query("UPDATE emails SET provider_retry_count = 1 WHERE id = %s", rows[2].id)
    query("UPDATE emails SET scheduled_at = now() + interval '1 day' WHERE id = %s", rows[3].id)
    found: list[str] = []
    after = None
    while page := store.overdue(timedelta(minutes=15), 2, after):
        found += [email_id for _, email_id in page]
        after = page[-1]
    assert sorted(found) == sorted(row.id for row in rows[4:])
    assert store.queued([row.id for row in rows]) == {row.id for row in rows} - {rows[1].id}


# Trouble.


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A Postgres that the test may stop."""
    with Postgres(tmp_path / "postgres", durable=False) as server:
        apply_schema(server.url())
        yield server


@pytest.fixture
def own_store(own_postgres: Postgres) -> Iterator[Store]:
    store = Store(own_postgres.url())
    yield store
    store.close()


def rows_in(server: Postgres) -> int:
    connection = psycopg2.connect(server.url())
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM emails")
            return int(cursor.fetchone()[0])
    finally:
        connection.close()


def heals(store: Store, row: EmailRow, seconds: float = 5.0) -> bool:
    """Whether a row gets in within that time, without anything being restarted."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return store.insert([row], []) == Stored()
        except Unavailable:
            gevent.sleep(0.05)
    return False


def test_a_killed_session_is_made_again_and_nothing_is_stored_twice(
    postgres_url: str, store: Store, make_row: MakeRow, query: Query
) -> None:
    """Every few messages all of the store's sessions are ended by the server, also in the midst of a statement."""
    rows = [make_row() for _ in range(300)]
    done = False

    def terminate() -> None:
        connection = psycopg2.connect(postgres_url, application_name="terminator")
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not done:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'opensend-relay' AND datname = current_database()"
                )
                gevent.sleep(0.1)
        connection.close()

    killer = gevent.spawn(terminate)
    answers: list[Outcome | Unavailable] = []
    for start in range(0, len(rows), 10):
        answers += outcomes(store, rows[start : start + 10])
    done = True
    killer.join()
    stored = {row["id"] for row in query("SELECT id FROM emails")}
    for row, answer in zip(rows, answers, strict=True):
        if isinstance(answer, Stored):
            assert row.id in stored
        else:
            assert isinstance(answer, Unavailable)
            assert answer.unclear or row.id not in stored
    assert sum(isinstance(answer, Stored) for answer in answers) > 150


def test_a_hanging_postgres_is_unavailable_within_five_seconds_and_heals(
    own_postgres: Postgres, own_store: Store, make_row: MakeRow
) -> None:
    assert own_store.insert([make_row()], []) == Stored()
    stopped = [own_postgres.pid, *descendants(own_postgres.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        answers = outcomes(own_store, [make_row() for _ in range(20)])
        assert time.monotonic() - started < LIMIT
        assert all(isinstance(answer, Unavailable) for answer in answers)
        started = time.monotonic()
        with pytest.raises(Unavailable):
            own_store.find_api_key("0" * 64)
        assert time.monotonic() - started < LIMIT
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    row = make_row()
    assert heals(own_store, row)
    assert own_store.rows_exist([row.id]) == {row.id}


def descendants(pid: int) -> list[int]:
    return [process.pid for process in processes.children(pid, recursive=True)]


def test_an_unclear_insert_that_went_through_is_counted_once(
    own_postgres: Postgres, own_store: Store, make_row: MakeRow
) -> None:
    """The statement waits for a lock; the first try is given up, the second one finds the first one's row."""
    assert own_store.insert([make_row()], []) == Stored()
    blocker = psycopg2.connect(own_postgres.url())
    with blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE emails IN SHARE MODE")
    row = make_row()
    inserting = gevent.spawn(own_store.insert, [row], [])
    gevent.sleep(3.0)  # past the half of the store's five seconds, at which it tries once more
    blocker.rollback()
    blocker.close()
    assert inserting.get(timeout=LIMIT) == Stored()
    assert rows_in(own_postgres) == 2


def test_a_dead_postgres_is_unavailable_at_once_and_heals(
    own_postgres: Postgres, own_store: Store, make_row: MakeRow
) -> None:
    assert own_store.insert([make_row()], []) == Stored()
    own_postgres.kill()
    started = time.monotonic()
    answers = outcomes(own_store, [make_row() for _ in range(20)])
    assert all(isinstance(answer, Unavailable) for answer in answers)
    for _ in range(100):
        with pytest.raises(Unavailable):
            own_store.insert([make_row()], [])
    assert time.monotonic() - started < LIMIT
    own_postgres.start()
    assert heals(own_store, make_row())


def test_a_read_only_server_is_unavailable_and_left(
    own_postgres: Postgres, own_store: Store, make_row: MakeRow
) -> None:
    assert own_store.insert([make_row()], []) == Stored()
    execute(own_postgres.url(), "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(own_postgres.url(), "SELECT pg_reload_conf()")
    gevent.sleep(0.5)
    with pytest.raises(Unavailable) as caught:
        own_store.insert([make_row()], [])
    assert not caught.value.unclear
    url = own_postgres.url() + "&options=-c%20default_transaction_read_only%3Doff"
    execute(url, "ALTER SYSTEM SET default_transaction_read_only = off")
    execute(url, "SELECT pg_reload_conf()")
    assert heals(own_store, make_row())


def test_no_connection_to_spare_is_unavailable_and_heals(own_postgres: Postgres, make_row: MakeRow) -> None:
    execute(own_postgres.url(), "CREATE ROLE poor LOGIN PASSWORD 'poor' CONNECTION LIMIT 1")
    execute(own_postgres.url(), "GRANT ALL ON ALL TABLES IN SCHEMA public TO poor")
    before, _, behind = own_postgres.url().partition("//")
    url = f"{before}//poor:poor@{behind.partition('@')[2]}"
    hog = psycopg2.connect(url)
    store = Store(url)
    with pytest.raises(Unavailable):
        store.insert([make_row()], [])
    hog.close()
    assert heals(store, make_row())
    store.close()


def test_sessions_stay_few_after_an_outage(own_postgres: Postgres, own_store: Store, make_row: MakeRow) -> None:
    own_postgres.kill()
    outcomes(own_store, [make_row() for _ in range(50)])
    own_postgres.start()
    assert heals(own_store, make_row())
    greenlets = [gevent.spawn(own_store.find_suppressions, "user", ["a@x.example"]) for _ in range(100)]
    gevent.joinall(greenlets, raise_error=True)
    connection = psycopg2.connect(own_postgres.url())
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'opensend-relay'")
        (sessions,) = cursor.fetchone()
    connection.close()
    assert sessions <= 5


@pytest.mark.parametrize("hosts", ["localhost:{port}", "127.0.0.1:{dead},localhost:{port}", "localhost:{port},[::1]:1"])
def test_names_are_looked_up_and_every_address_tried(own_postgres: Postgres, make_row: MakeRow, hosts: str) -> None:
    before, _, behind = own_postgres.url().partition("@")
    where = hosts.format(port=own_postgres.port, dead=free_port())
    store = Store(f"{before}@{where}/{behind.partition('/')[2]}")
    assert store.insert([make_row()], []) == Stored()
    store.close()


def test_a_name_that_does_not_resolve_is_unavailable(make_row: MakeRow) -> None:
    store = Store("postgresql://nobody@no-such-host.invalid/none")
    started = time.monotonic()
    with pytest.raises(Unavailable):
        store.insert([make_row()], [])
    assert time.monotonic() - started < LIMIT + 10  # a name server may be slow, but the client has to be answered
    store.close()


def test_a_closed_store_answers_unavailable(store: Store, make_row: MakeRow) -> None:
    assert store.insert([make_row()], []) == Stored()
    store.close()
    with pytest.raises(Unavailable):
        store.insert([make_row()], [])
    with pytest.raises(Unavailable):
        store.rows_exist([str(uuid.uuid4())])
