"""What warming costs, beside the naive way: entries a second, and octets of Redis's memory for each.

    python -m scripts.bench_warming --suppressions 1000000

Starts a separate Postgres and Valkey in a temporary directory, and fills them with made-up data: four fifths of the
suppressions belong to one user, the rest to 500. The naive way is a key for each address, written in pipelines of 1,000
by redis-py, which is also what a look-up without a complete list would need.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch bench_warming instead.")

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psycopg2
import redis
import typer

from scripts.database import apply_schema, create_api_key
from scripts.services import Postgres, Valkey, start_together

ROOT = Path(__file__).resolve().parent.parent
USERS = 500

FILL = f"""
INSERT INTO email_suppressions (id, user_id, email, reason)
SELECT gen_random_uuid(), CASE WHEN i %% 5 < 4 THEN 'user-0' ELSE 'user-' || (1 + i %% {USERS}) END,
       'person.' || i || '@example-' || (i %% 997) || '.com', (ARRAY['bounced', 'complained', 'manual'])[1 + i %% 3]
  FROM generate_series(1, %s) i"""  # noqa: S608 - constants


def bench(
    suppressions: Annotated[int, typer.Option(help="How many.")] = 1_000_000,
    naive: Annotated[bool, typer.Option(help="Measure the naive way too.")] = True,
) -> None:
    """Measures, and prints a line for each way."""
    with tempfile.TemporaryDirectory() as directory:
        postgres, valkey = Postgres(Path(directory, "pg"), durable=False), Valkey(Path(directory, "valkey"))
        start_together(postgres, valkey)
        try:
            fill(postgres.url(), suppressions)
            warm_as_the_relay(postgres.url(), valkey.url, suppressions)
            if naive:
                warm_naively(postgres.url(), valkey.url, suppressions)
        finally:
            valkey.stop()
            postgres.stop()


def fill(database_url: str, suppressions: int) -> None:
    """Makes the data."""
    apply_schema(database_url)
    for number in range(USERS):
        create_api_key(database_url, user_id=f"user-{number}")
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(FILL, (suppressions,))
        cursor.execute("VACUUM ANALYZE email_suppressions")
    connection.close()


def warm_as_the_relay(database_url: str, redis_url: str, suppressions: int) -> None:
    """`scripts/warm_cache.py`, as an operator runs it."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        before = client.info("memory")["used_memory"]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "warm_cache.py", "--suppressions-only", "--json"],
            env=os.environ | {"DATABASE_URL": database_url, "REDIS_URL": redis_url},
            check=True,
            stdout=subprocess.PIPE,
        )
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads(done.stdout)
        assert summary["suppressions"] == suppressions, summary
        octets = client.info("memory")["used_memory"] - before
        cpu = usage.ru_utime + usage.ru_stime - children.ru_utime - children.ru_stime
        report("relay", suppressions, summary["seconds"], octets, client.dbsize())
        print(f"       {cpu:.1f} s of CPU, at most {usage.ru_maxrss / 1024:.0f} MB resident")


def warm_naively(database_url: str, redis_url: str, suppressions: int) -> None:
    """A key for each address."""
    connection = psycopg2.connect(database_url)
    with redis.Redis.from_url(redis_url) as client, connection.cursor("all") as cursor:
        client.flushall()
        before = client.info("memory")["used_memory"]
        started = time.monotonic()
        cursor.itersize = 10_000
        cursor.execute("SELECT user_id, email, reason FROM email_suppressions")
        pipeline = client.pipeline(transaction=False)
        for user_id, email, reason in cursor:
            pipeline.set(f"smtp-relay:suppression:{user_id}:{email}", reason, ex=86_400)
            if len(pipeline) == 1000:
                pipeline.execute()
        pipeline.execute()
        seconds = time.monotonic() - started
        report("naive", suppressions, seconds, client.info("memory")["used_memory"] - before, client.dbsize())
    connection.close()


def report(way: str, entries: int, seconds: float, octets: int, keys: int) -> None:
    """One line."""
    print(
        f"{way}: {entries:,} entries in {seconds:.1f} s, {entries / seconds:,.0f}/s;"
        f" {octets / entries:.1f} octets an entry, {octets / 1e6:,.0f} MB in {keys:,} keys",
        flush=True,
    )


if __name__ == "__main__":
    typer.run(bench)
