"""`python -m scripts.benchmark.fairness`: how long a user's single mails wait beside another user's newsletter.

Real delivery processes against a double of SES that takes so many recipients a second and answers after 20 ms
(scripts/benchmark/swiftses.py). 100,000 rows of one user wait; meanwhile single mails of others are put in, from one
user and from 1,000. What counts is the time from the row to the record that it was sent, by Postgres's clock.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.fairness instead.")

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import gevent

from scripts.benchmark.delivery_memory import add_alike
from scripts.benchmark.pace import ANSWER_MILLISECONDS
from scripts.benchmark.swiftses import SwiftSes
from scripts.database import apply_schema, create_database, execute, query
from scripts.services import Delivery, Postgres, Valkey

PROCESSES: Final = 3
NEWSLETTER: Final = 100_000
#: Seconds that a single mail may wait for another user's newsletter.
GOAL: Final = 1.0
#: The part of the account's rate that the single mails take.
PART: Final = 0.1


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goal, 1 beyond it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.fairness", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=(14.0, 500.0), help="recipients a second")
    parser.add_argument("--users", type=int, nargs="+", default=(1, 1000), help="users of the single mails")
    parser.add_argument("--seconds", type=float, default=30.0, help="in which single mails are put in")
    options = parser.parse_args(arguments)
    met = True
    print("| account | users | single mails | half wait less than | 99 % | the longest | newsletter meanwhile |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        for rate in options.rates:
            for users in options.users:
                met &= _beside_a_newsletter(Path(folder) / f"{rate:g}-{users}", rate, users, options.seconds)
    return 0 if met else 1


def _beside_a_newsletter(directory: Path, rate: float, users: int, seconds: float) -> bool:
    directory.mkdir(mode=0o755)
    with (
        Valkey(directory / "valkey") as valkey,
        Postgres(directory / "postgres", durable=False) as postgres,
        SwiftSes(directory / "ses", ANSWER_MILLISECONDS) as ses,
    ):
        url = create_database(postgres.url(), "fairness")
        apply_schema(url)
        ses.has(rate=rate)
        add_alike(url, "newsletter", NEWSLETTER)
        execute(url, "ANALYZE emails")
        settings: dict[str, str | None] = {
            **ses.client_environment,
            "DATABASE_URL": url,
            "REDIS_URL": valkey.url,
            "SMTP_RELAY_DELIVERY_PROCESSES": str(PROCESSES),
        }
        with Delivery(directory / "delivery", settings):
            gevent.sleep(5.0)
            chance = random.Random(1)  # noqa: S311 - a benchmark
            before, count = _sent(url, newsletter=True), 0
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                add_alike(url, f"user {chance.randrange(users)}", 1)
                count += 1
                gevent.sleep(chance.expovariate(rate * PART))
            meanwhile = _sent(url, newsletter=True) - before
            until = time.monotonic() + 60.0
            while _sent(url, newsletter=False) < count and time.monotonic() < until:
                gevent.sleep(0.1)
        waits = sorted(
            float(str(wait))
            for (wait,) in query(
                url,
                "SELECT extract(epoch FROM coalesce(sent_at, 'infinity') - created_at) FROM emails"
                " WHERE user_id <> 'newsletter'",
            )
        )
    half, most, longest = (waits[int(part * (len(waits) - 1))] for part in (0.5, 0.99, 1.0))
    figures = (f"{half:.2f} s", f"{most:.2f} s", f"{longest:.2f} s", f"{meanwhile / rate / seconds:.0%} of the rate")
    print(f"| {rate:g}/s | {users} | {len(waits)} | {' | '.join(figures)} |", flush=True)
    return longest <= GOAL


def _sent(url: str, *, newsletter: bool) -> int:
    """How many mails of the newsletter, or of the others, have left."""
    ((count,),) = query(
        url,
        "SELECT count(*)::int FROM emails WHERE status = 'sent' AND (user_id = 'newsletter') = %s",
        (newsletter,),
    )
    return int(str(count))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
