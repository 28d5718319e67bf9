"""Who waits for whose lock in a real Postgres, and for how long: told by what is given up first, not by a clock."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import psycopg2
import pytest

from relay.core.records import EmailRow
from relay.postgres.group_commit import Stored
from relay.postgres.store import Store
from scripts.database import NewApiKey

MakeRow = Callable[..., EmailRow]
Query = Callable[..., list[dict[str, Any]]]


@contextlib.contextmanager
def locked(url: str, statement: str, *parameters: object) -> Iterator[None]:
    """Holds what the statement locks, until the block ends."""
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
        yield
    finally:
        connection.rollback()
        connection.close()


def test_a_statement_for_many_gives_up_a_lock_before_its_time_is_over(
    store: Store, make_row: MakeRow, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two limits the server names the one that was over first: that of locks is a sixth of the other."""
    blocked: list[bool] = []
    part = store._commits._part

    def noting(*arguments: Any, **options: Any) -> None:
        blocked.append(options["blocked"])
        part(*arguments, **options)

    monkeypatch.setattr(store._commits, "_part", noting)
    held = (
        'INSERT INTO emails (id, "from", "to", subject, user_id, idempotency_key)'
        " VALUES (gen_random_uuid(), 'a@x', '[]', 's', 'slow', 'key')"
    )
    with locked(postgres_url, held):
        rows = [make_row(user_id="slow", idempotency_key="key"), *(make_row(user_id=str(n)) for n in range(5))]
        sent = [gevent.spawn(store.insert, [row], [row.to[0]]) for row in rows]
        gevent.joinall(sent[1:], raise_error=True, timeout=60)
        assert [greenlet.value for greenlet in sent[1:]] == [Stored()] * 5
    assert sent[0].get(timeout=60) == Stored()
    assert blocked[0] is True


def test_time_limits_of_statements_as_the_server_gets_them(store: Store, make_row: MakeRow, query: Query) -> None:
    """Within the second that another user's mail may cost at most: the statement for many, and a second one beside
    it."""
    seconds = "extract(epoch from current_setting('{}')::interval)::float"
    told = f"array[{seconds.format('statement_timeout')}, {seconds.format('lock_timeout')}]"
    query(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN NEW.text := to_json({told}); RETURN NEW; END$$"
    )
    query("CREATE TRIGGER tell BEFORE INSERT ON emails FOR EACH ROW EXECUTE FUNCTION tell()")
    store.insert([make_row()], ["to@x.example"])
    assert [json.loads(row["text"]) for row in query("DELETE FROM emails RETURNING text")] == [[0.6, 0.1]]
    rows = [make_row(to=(f"{number}@x.example",)) for number in range(2)]
    store.insert(rows, [row.to[0] for row in rows])
    (alone,) = {row["text"] for row in query("SELECT text FROM emails")}
    statement, lock = json.loads(alone)
    assert lock == 0.05
    # What is left of the time for a reply.
    assert 0.6 < statement <= 4.5


def test_a_user_with_many_slow_messages_of_several_rows_leaves_places_for_others(
    make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    """Each of them has a separate transaction, and computes without end as far as the others are concerned."""
    query(
        "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF NEW.user_id = 'slow' THEN PERFORM pg_sleep(20); END IF; RETURN NEW; END$$"
    )
    query("CREATE TRIGGER trouble BEFORE INSERT ON emails FOR EACH ROW EXECUTE FUNCTION trouble()")
    store = Store(postgres_url, deadline=60.0)

    def send(user_id: str) -> object:
        rows = [make_row(user_id=user_id, to=(f"{number}@x.example",)) for number in range(2)]
        return store.insert(rows, [row.to[0] for row in rows])

    slow = [gevent.spawn(send, "slow") for _ in range(12)]
    gevent.sleep(0.3)
    assert [send(f"user-{number}") for number in range(6)] == [Stored()] * 6
    assert not any(greenlet.ready() for greenlet in slow), "the trouble has to last for longer than the others need"
    gevent.killall(slow)
    store.close()


def test_the_time_of_a_keys_use_is_written_beside_one_whose_row_is_in_other_hands(
    store: Store, query: Query, postgres_url: str, make_api_key: Callable[..., NewApiKey]
) -> None:
    held, free = make_api_key().id, make_api_key().id
    with locked(postgres_url, "SELECT 1 FROM api_keys WHERE id = %s FOR UPDATE", held):
        store.touch_api_keys([held, free])
        used = query("SELECT id FROM api_keys WHERE last_used_at IS NOT NULL")
        assert [row["id"] for row in used] == [free]
    store.touch_api_keys([held])
    assert query("SELECT count(*) AS n FROM api_keys WHERE last_used_at IS NULL") == [{"n": 0}]


def test_an_old_idempotency_key_is_let_go_of_without_waiting_for_its_row(
    store: Store, make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    row = make_row(user_id="user", idempotency_key="key")
    assert store.insert([row], [row.to[0]]) == Stored()
    query("UPDATE emails SET created_at = now() - interval '25 hours'")
    with locked(postgres_url, "SELECT 1 FROM emails FOR UPDATE"):
        # Would raise once the time for an answer is over.
        assert store.holder_of_key("user", "key") is None
        assert query("SELECT idempotency_key FROM emails") == [{"idempotency_key": "key"}]
    assert store.holder_of_key("user", "key") is None
    assert query("SELECT idempotency_key FROM emails") == [{"idempotency_key": None}]
