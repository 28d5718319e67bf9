"""`python -m scripts.benchmark.claims`: a long backlog of one user, and how soon another's mail leaves beside it.

A million queued rows of one user with one `created_at`, as one statement makes them, a tenth of them not due, in part
at either end; beside them what has left the queue and is not vacuumed. Nothing but the contract's indexes, and the
statistics of an empty table.

First looks and claims by themselves, timed here; then the delivery worker, with a double of SES that answers after
20 ms, whose statements Postgres times, while other users' rows come. The figures are those of this machine: best on
one that does nothing else.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.claims instead.")

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from relay.delivery.row_source import CLAIM_ROWS, LOOK_ROWS, PIECE
from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, WaitingRows
from scripts.database import apply_schema, create_database, execute, query
from scripts.services import Delivery, Postgres, Ses
from scripts.services.ses_request import Answer

_T = TypeVar("_T")
#: Milliseconds that a look and the claim behind it may take (the 99th percentile), and seconds until another user's row
#: leaves.
CLAIM_GOAL: Final = 20.0
NEWCOMER_GOAL: Final = 2.0
_PATIENCE_SECONDS: Final = 60.0


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goals, 1 beyond them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.claims", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="queued rows of one user")
    parser.add_argument("--later", type=int, default=100_000, help="how many of them are not due")
    parser.add_argument("--gone", type=int, default=100_000, help="rows that have left the queue since the last vacuum")
    parser.add_argument("--processes", type=int, default=1, help="delivery processes")
    parser.add_argument("--newcomers", type=int, default=30, help="rows of other users, a second apart")
    options = parser.parse_args(arguments)
    with _servers() as (postgres, ses, directory):
        url = create_database(postgres.url(), "claims")
        apply_schema(url)
        execute(url, "CREATE EXTENSION pg_stat_statements")
        began = time.monotonic()
        make(url, options.rows, options.later, options.gone)
        print(f"{options.rows:,} rows made in {time.monotonic() - began:.0f} s", flush=True)
        claims = looks_and_claims(url)
        execute(url, "SELECT pg_stat_statements_reset()")
        times = newcomers(url, ses, directory, options.processes, options.newcomers)
        print(f"another user's row leaves: {_figures([1000 * seconds for seconds in times])}")
        slow = slowest(url)
    for name, calls, mean, most in slow:
        print(f"{most:8.2f} ms at most, {mean:6.2f} ms on average, {calls:6} calls: {name}")
    return 0 if statistics.quantiles(claims, n=100)[-1] <= CLAIM_GOAL and max(times) <= NEWCOMER_GOAL else 1


def make(url: str, rows: int, later: int, gone: int) -> None:
    """A long backlog of the user `many`."""
    execute(url, "ALTER TABLE emails SET (autovacuum_enabled = off)")
    execute(url, "ANALYZE emails")
    execute(
        url,
        'INSERT INTO emails (id, "from", "to", subject, html, text, user_id, provider_next_retry_at)'
        " SELECT gen_random_uuid(), 'a@example.com', '[\"to@x.example\"]', 'Subject', '', 'Text', 'many',"
        # Half of those that are not due at the old end, a quarter at the new one, the rest among the others.
        " CASE WHEN n <= %s OR n > %s OR n %% 37 = 0 AND n / 37 <= %s"
        " THEN now() + interval '1 hour' END FROM generate_series(1, %s) AS n",
        (later // 2, rows - later // 4, later // 4, rows),
    )
    if gone:
        execute(
            url,
            "UPDATE emails SET status = 'sent' WHERE id IN (SELECT id FROM emails WHERE provider_next_retry_at IS NULL"
            " LIMIT %s)",
            (gone,),
        )


def looks_and_claims(url: str, rounds: int = 200) -> list[float]:
    """Milliseconds that it takes to find and claim as many rows as the worker claims at a time, each time."""
    database = Database(url, statement_seconds=30.0, idle_limit=2, switched_off=PLANNER)
    waiting, outgoing = WaitingRows(database), Outgoing(database)
    walk = waiting.walk("queued")
    times: dict[str, list[float]] = {"newest": [], "oldest": [], "walk": [], "claim": []}
    whole: list[float] = []

    def timed(name: str, work: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        result = work()
        times[name].append((time.perf_counter() - began) * 1000)
        return result

    while len(whole) < rounds:
        newest = timed("newest", lambda: waiting.newest(LOOK_ROWS))
        oldest = timed("oldest", lambda: waiting.oldest("queued", PIECE))
        between = timed("walk", lambda: walk.read(PIECE)[0])
        ids = [row.email_id for row in (*oldest, *between, *newest) if row.due_in <= 0][:CLAIM_ROWS]
        if ids:
            timed("claim", lambda ids=ids: outgoing.claim(ids, skip_locked=True))  # type: ignore[misc]
            whole.append(times["newest"][-1] + times["claim"][-1])
    walk.close()
    database.close()
    execute(url, "UPDATE emails SET status = 'queued' WHERE status = 'processing'")
    for name, values in times.items():
        print(f"{name:>10}: {_figures(values)}")
    print(f"{'found and claimed':>10}: {_figures(whole)}", flush=True)
    return whole


def newcomers(url: str, ses: Ses, directory: Path, processes: int, count: int) -> list[float]:
    """Seconds from the commit of another user's row until SES has the mail, one after the other."""
    settings = {**ses.client_environment, "DATABASE_URL": url, "SMTP_RELAY_DELIVERY_PROCESSES": str(processes)}
    late: Answer = {"seconds": 0.02}
    ses.answer(*[late] * 200_000)
    times = []
    with Delivery(directory / "delivery", settings):
        until = time.monotonic() + _PATIENCE_SECONDS
        while not query(url, "SELECT 1 FROM emails WHERE status = 'processing' LIMIT 1"):
            if time.monotonic() > until:
                raise TimeoutError("the worker does not begin")
            time.sleep(0.05)
        for number in range(count):
            email_id = str(uuid.uuid4())
            execute(
                url,
                'INSERT INTO emails (id, "from", "to", subject, html, text, user_id)'
                " VALUES (%s, 'b@example.com', '[\"to@x.example\"]', 'Subject', '', 'Text', %s)",
                (email_id, f"user {number}"),
            )
            began = time.monotonic()
            while query(url, "SELECT sent_at IS NULL FROM emails WHERE id = %s", (email_id,))[0][0]:
                if time.monotonic() > began + _PATIENCE_SECONDS:
                    raise TimeoutError("a row of another user does not leave")
                time.sleep(0.01)
            times.append(time.monotonic() - began)
            time.sleep(1.0)
        left = query(url, "SELECT count(*) FROM emails WHERE status = 'sent' AND sent_at IS NOT NULL")[0][0]
    print(f"{left:,} mails left meanwhile")
    return times


def slowest(url: str) -> list[tuple[str, int, float, float]]:
    """The worker's statements that took Postgres longest: text, calls, milliseconds on average and at most."""
    rows = query(
        url,
        "SELECT query, calls, mean_exec_time, max_exec_time FROM pg_stat_statements"
        " WHERE query NOT LIKE '%pg_stat_statements%' AND calls > 1 ORDER BY max_exec_time DESC LIMIT 8",
    )
    return [
        (" ".join(str(text).split())[:70], int(str(calls)), float(str(mean)), float(str(most)))
        for text, calls, mean, most in rows
    ]


def _figures(milliseconds: list[float]) -> str:
    cuts = statistics.quantiles(milliseconds, n=100)
    return f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, max {max(milliseconds):.1f} ms ({len(milliseconds)} times)"


@contextmanager
def _servers() -> Iterator[tuple[Postgres, Ses, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        directory = Path(folder)
        settings = {"shared_preload_libraries": "pg_stat_statements", "shared_buffers": "512MB"}
        for name in ("postgres", "ses"):
            (directory / name).mkdir()
        postgres = Postgres(directory / "postgres", durable=False, settings=settings)
        with postgres, Ses(directory / "ses") as ses:
            yield postgres, ses, directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
