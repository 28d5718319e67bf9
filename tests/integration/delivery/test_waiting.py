"""Reading what waits costs the same whatever waits: counted in rows and pages of Postgres's own plans, not in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, Processing, Waiting, WaitingRows, Walk

Query = Callable[..., list[tuple[Any, ...]]]
#: Enough for a plan that reads them all to stand out.
MANY = 20_000
#: Pages that reading `rows` rows may touch: each row may lie in another one, and some lead there.
PAGES_A_ROW, PAGES_BEFORE = 1.2, 40


class Explained(Database):
    """Runs each statement, and keeps the plan that was carried out for it."""

    def __init__(self, url: str) -> None:
        super().__init__(url, statement_seconds=60.0, idle_limit=2, switched_off=PLANNER)
        self.plans: list[dict[str, Any]] = []

    def use_shared(self, deadline: float, work: Callable[[Any], Any], *, owner: str = "") -> Any:
        """As Database's, which `use` calls; what an explained statement returns is lost, so it runs twice, once rolled
        back.
        """

        def explained(cursor: Any) -> Any:
            statements: list[tuple[str, Any]] = []
            cursor.execute("BEGIN")
            work(_Noting(cursor, statements))
            cursor.execute("ROLLBACK")
            for statement, values in statements:
                cursor.execute("BEGIN")
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values)
                self.plans.append(cursor.fetchone()[0][0]["Plan"])
                cursor.execute("ROLLBACK")
            return work(cursor)

        return super().use_shared(deadline, explained, owner=owner)


class _Noting:
    """A cursor that notes what it carries out."""

    def __init__(self, cursor: Any, statements: list[tuple[str, Any]]) -> None:
        self._cursor, self._statements = cursor, statements

    def execute(self, statement: str, values: Any) -> None:
        """As the cursor's."""
        self._statements.append((statement, values))
        self._cursor.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


def rows_read(plan: dict[str, Any]) -> int:
    """Rows that any node of a plan has taken or thrown away, at the most."""
    removed = sum(value for name, value in plan.items() if name.startswith("Rows Removed"))
    here = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    return int(max([here, *map(rows_read, plan.get("Plans", []))]))


def pages_read(plan: dict[str, Any]) -> int:
    """Pages of 8 KB that it has looked at."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.fixture
def explained(postgres_url: str, outgoing: Outgoing) -> Iterator[Explained]:
    database = Explained(postgres_url)
    yield database
    database.close()


def insert(query: Query, count: int, *, columns: str = "", values: str = "", user: str = "many") -> None:
    query(
        f'INSERT INTO emails (id, "from", "to", subject, html, text, user_id{columns})'
        f" SELECT gen_random_uuid(), 'a@example.com', '[\"to@x.example\"]', 's', '', 't', '{user}'{values}"
        f" FROM generate_series(1, {count}) AS n"
    )


def _equal_times(query: Query) -> None:
    insert(query, MANY)


def _times_of_their_own(query: Query) -> None:
    insert(query, MANY, columns=", created_at", values=", now() - n * interval '1 second'")


def _not_due_at_both_ends(query: Query) -> None:
    later = f"CASE WHEN n < {MANY // 10} OR n > {MANY - MANY // 10} THEN now() + interval '1 hour' END"
    insert(query, MANY, columns=", provider_next_retry_at", values=f", {later}")


def _sent_long_ago(query: Query) -> None:
    insert(query, MANY, columns=", status", values=", 'sent'")
    insert(query, 300)


def _scheduled_for_later(query: Query) -> None:
    insert(query, MANY, columns=", status, scheduled_at", values=", 'scheduled', now() + n * interval '1 minute'")


def _claimed_by_others(query: Query) -> None:
    insert(query, MANY, columns=", status", values=", 'processing'")


BACKLOGS = {
    make.__name__[1:]: make
    for make in (
        _equal_times,
        _times_of_their_own,
        _not_due_at_both_ends,
        _sent_long_ago,
        _scheduled_for_later,
        _claimed_by_others,
    )
}
#: What the planner believes: nothing, that there is nothing queued, what is there, or that everything is queued.
STATISTICS = ("none", "before", "after", "all queued")


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("backlog", BACKLOGS)
def test_no_statement_reads_the_backlog(
    explained: Explained, query: Query, postgres_url: str, backlog: str, statistics: str
) -> None:
    query("ALTER TABLE emails SET (autovacuum_enabled = off)")
    if statistics == "before":
        insert(query, 1000, columns=", status", values=", 'sent'")
        _execute(postgres_url, "ANALYZE emails")
        query("DELETE FROM emails")
    elif statistics == "all queued":
        insert(query, 1000)
        _execute(postgres_url, "ANALYZE emails")
        query("DELETE FROM emails")
    BACKLOGS[backlog](query)
    if statistics == "after":
        _execute(postgres_url, "ANALYZE emails")
    waiting = WaitingRows(explained)
    most = 100
    found = waiting.newest(most)
    waiting.newest(most, seconds=60)
    waiting.oldest("queued", most)
    waiting.oldest("scheduled", most)
    waiting.processing(most)
    Outgoing(explained).claim([row.email_id for row in found[:20]], skip_locked=True)
    # There is nothing to claim where nothing waits.
    assert len(explained.plans) == (6 if found else 5)
    for plan in explained.plans:
        assert rows_read(plan) <= most, plan
        # A row that is claimed has a new version, and a new entry in each of seven indexes.
        changed = 20 * 40 if plan["Node Type"] == "ModifyTable" else 0
        assert pages_read(plan) <= PAGES_A_ROW * most + PAGES_BEFORE + changed, plan
    for status in ("queued", "scheduled", "processing"):
        assert walk_plan(explained, status) == "Index Scan emails_status_created_at"


def walk_plan(database: Database, status: str) -> str:
    """How the cursor of a walk would be carried out."""
    seen: list[tuple[str, Any]] = []

    class Cursor:
        """Notes the statement, and returns nothing."""

        def execute(self, statement: str, values: Any) -> None:
            """As a cursor's."""
            seen.append((statement, values))

        def fetchall(self) -> list[Any]:
            """Nothing."""
            return []

    kind = Processing if status == "processing" else Waiting
    Walk(database, status, 5.0, kind)._execute(Cursor(), 100, opened=False)
    ((statement, values),) = seen
    declared = statement.split(";")[1]

    def explain(cursor: Any) -> str:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {declared}", values)
        plan = cursor.fetchone()[0][0]["Plan"]
        return f"{plan['Node Type']} {plan.get('Index Name')}"

    return str(Database.use_shared(database, _soon(), explain))


def _soon() -> float:
    from relay.core import deadlines

    return deadlines.after(5.0)


def _execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


def test_what_has_left_the_queue_is_passed_over_once(explained: Explained, query: Query) -> None:
    """Entries of an index stay behind until they are vacuumed; the first statement that meets them marks them."""
    query("ALTER TABLE emails SET (autovacuum_enabled = off)")
    _equal_times(query)
    query("UPDATE emails SET status = 'processing'")
    query("UPDATE emails SET status = 'sent'")
    insert(query, 50)
    waiting = WaitingRows(explained)
    for _ in range(2):
        explained.plans.clear()
        assert len(waiting.newest(100)) == 50
        assert len(waiting.oldest("queued", 100)) == 50
        waiting.processing(100)
    assert max(map(pages_read, explained.plans)) < MANY / 20


def test_recent_rows_are_read_alone_while_nothing_can_be_vacuumed(
    explained: Explained, query: Query, postgres_url: str
) -> None:
    """Another transaction is open for hours (a backup): what has left the queue since can't be marked either."""
    query("ALTER TABLE emails SET (autovacuum_enabled = off)")
    _times_of_their_own(query)
    with psycopg2.connect(postgres_url) as holding, holding.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM emails")
        query("UPDATE emails SET status = 'sent'")
        insert(query, 50)
        waiting = WaitingRows(explained)
        assert len(waiting.newest(100, seconds=30)) == 50
        (plan,) = explained.plans
        assert pages_read(plan) < 200


@pytest.mark.parametrize("make", [_equal_times, _times_of_their_own])
def test_a_walk_hands_out_every_row_once_however_equal_their_times(
    explained: Explained, query: Query, make: Callable[[Query], None]
) -> None:
    make(query)
    walk = WaitingRows(explained).walk("queued")
    seen: list[str] = []
    created: list[float] = []
    ended = False
    while not ended:
        rows, ended = walk.read(500)
        assert len(rows) <= 500
        seen.extend(row.email_id for row in rows)
        created.extend(row.created for row in rows)
    assert len(seen) == len(set(seen)) == MANY
    assert created == sorted(created)
    assert len(walk.read(500)[0]) == 500  # it begins anew
    walk.close()


@pytest.mark.parametrize("make", [_equal_times, _times_of_their_own])
def test_a_walk_in_many_transactions_leaves_nothing_out_but_of_equal_times(
    explained: Explained, query: Query, make: Callable[[Query], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.postgres.waiting.WALK_SECONDS", -1.0)  # every piece is a separate one
    make(query)
    insert(query, 10, columns=", created_at", values=", now() + interval '1 minute'", user="few")
    walk = WaitingRows(explained).walk("queued")
    seen: set[str] = set()
    users: set[str | None] = set()
    ended = False
    while not ended:
        rows, ended = walk.read(2000)
        seen.update(row.email_id for row in rows)
        users.update(row.user_id for row in rows)
    assert "few" in users  # what is behind more rows of one time than a transaction reads
    assert make is _equal_times or len(seen) == MANY + 10


@pytest.mark.parametrize(
    ("columns", "due"),
    [
        ({}, 0.0),
        ({"scheduled_at": "2020-01-01T00:00:00Z"}, 0.0),
        ({"scheduled_at": "infinity"}, float("inf")),
        ({"provider_next_retry_at": "infinity"}, float("inf")),
        ({"provider_next_retry_at": "-infinity", "created_at": "-infinity"}, 0.0),
        ({"created_at": "infinity"}, 0.0),
        ({"created_at": "0044-03-15 BC"}, 0.0),
        ({"status": "scheduled"}, float("inf")),
        ({"status": "scheduled", "scheduled_at": "2020-01-01T00:00:00Z"}, 0.0),
        ({"status": "scheduled", "scheduled_at": "2020-01-01T00:00:00Z", "provider_next_retry_at": "2999-01-01"}, 1e9),
        ({"user_id": None, "html": None, "text": None, "attachments": None}, 0.0),
    ],
)
def test_when_a_row_may_leave(
    explained: Explained, add_email: Callable[..., str], outgoing: Outgoing, columns: dict[str, Any], due: float
) -> None:
    """What a look says agrees with what a claim does, for all that a column may hold."""
    email_id = add_email(**columns)
    status = columns.get("status", "queued")
    ((row,), ended) = WaitingRows(explained).walk(status).read(10)
    assert ended
    assert WaitingRows(explained).oldest(status, 10)[0].email_id == row.email_id == email_id
    assert (row.due_in <= 0) == (due <= 0)
    assert (row.due_in >= 1e9) == (due >= 1e9)
    assert bool(outgoing.claim([email_id])) == (due <= 0)
    assert json.dumps(row.octets)
