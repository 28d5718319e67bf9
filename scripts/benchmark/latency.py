"""How long one message takes: for a client on its own, and for one beside others that send large messages."""

from __future__ import annotations

import re
import time
import urllib.request
import uuid
from typing import Final

import psycopg2
import psycopg2.extras

from scripts.benchmark.plan import Plan
from scripts.benchmark.report import Series, Table, say, verdict
from scripts.benchmark.subjects import Stage
from scripts.services import free_port

#: What is asked of the median, as a ratio to a single-row INSERT.
ALONE_GOAL: Final = 1.5
#: What is asked of the 99th percentile beside large messages, in milliseconds.
FAIRNESS_GOAL: Final = 150.0
#: What is asked of the hub: the most that it is ever held up, in seconds.
LAG_GOAL: Final = 0.05

_BUCKET: Final = re.compile(r'^smtp_relay_hub_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


def alone(stage: Stage, plan: Plan) -> list[Table]:
    """One client, one message after the other, against the INSERT of the very row over the same driver."""
    mails, inserts = Series(), Series()
    with stage.relay() as relay:
        load = stage.load(relay, "1.2 KB", seconds=120, messages=plan.alone)
        load.run_alone()
        for number in range(plan.rounds):
            stage.clean()
            mails.values.append(load.run_alone() * 1000)
            inserts.values.append(_insert_again(stage.database_url, plan.alone) * 1000)
            say(f"  {number + 1}/{plan.rounds}  mail {mails.values[-1]:.2f} ms  INSERT {inserts.values[-1]:.2f} ms")
    ratio = mails / inserts
    table = Table(
        "Latency of a single client",
        ("mail", "INSERT, p50, ms", "MAIL to 250, p50, ms", "ratio", "goal", ""),
        note="Four round trips of SMTP, one of Redis and one of Postgres, which waits for the disk, against one of"
        " Postgres: psycopg2, the row that the relay has stored, one row a transaction.",
    )
    compared = (inserts.text(".2f"), mails.text(".2f"), ratio.text(".2f"))
    table.rows.append(("1.2 KB", *compared, f"≤ {ALONE_GOAL}", verdict(ratio.median <= ALONE_GOAL)))
    return [table]


def _insert_again(database_url: str, count: int) -> float:
    """The median time in seconds that it takes to insert a row that is there already, with another id."""
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    try:
        with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute("SELECT * FROM emails LIMIT 1")
            row = {
                name: psycopg2.extras.Json(value) if isinstance(value, list | dict) else value
                for name, value in (cursor.fetchone() or {}).items()
                if value is not None
            }
            columns = ", ".join(f'"{name}"' for name in row)
            places = ", ".join(f"%({name})s" for name in row)
            times = []
            for _ in range(count):
                row["id"] = str(uuid.uuid4())
                began = time.perf_counter()
                cursor.execute(f"INSERT INTO emails ({columns}) VALUES ({places})", row)  # noqa: S608 - names of columns
                times.append(time.perf_counter() - began)
    finally:
        connection.close()
    return Series(times).median


def fairness(stage: Stage, plan: Plan) -> list[Table]:
    """A client with small messages beside four that send 39 MB without pause."""
    metrics_port = free_port()
    with stage.relay(SMTP_RELAY_METRICS_PORT=str(metrics_port)) as relay:
        quiet = stage.measure(relay, stage.load(relay, "1.2 KB", connections=1, seconds=120, messages=plan.alone))
        before = _lags(metrics_port)
        large = stage.load(relay, "39 MB", connections=4, seconds=plan.fairness_seconds)
        small = stage.load(relay, "1.2 KB", connections=1, seconds=plan.fairness_seconds)
        with large.start() as client:
            time.sleep(1.0)  # until the first of them are on their way
            beside = small.run()
            heavy = client.wait()
        lags = {bound: count - before.get(bound, 0) for bound, count in _lags(metrics_port).items()}
        stage.clean()
    for outcome in (beside, heavy):
        if not outcome.accepted or outcome.refused or outcome.failed:
            raise RuntimeError(f"not everything was accepted: {outcome}")
    slowest = beside.percentile(99) * 1000
    held_up = min(bound for bound, count in lags.items() if count == lags[float("inf")])
    table = Table(
        "Small messages beside large ones",
        ("", "alone", "beside four clients with 39 MB", "goal", ""),
        note=f"{beside.accepted:,} small and {heavy.accepted} large messages were accepted in {heavy.seconds:.0f} s,"
        " by one worker. The hub's lag is how late its timers were, as exported by the relay: no timer was later than"
        " the bound given.",
    )
    table.rows = [
        _milliseconds("1.2 KB, p50, ms", quiet.outcome.percentile(50), beside.percentile(50)),
        (
            *_milliseconds("1.2 KB, p99, ms", quiet.outcome.percentile(99), beside.percentile(99))[:3],
            f"≤ {FAIRNESS_GOAL:.0f}",
            verdict(slowest <= FAIRNESS_GOAL),
        ),
        _milliseconds("1.2 KB, slowest, ms", quiet.outcome.latencies[-1], beside.latencies[-1]),
        ("hub's lag, ms", "", f"≤ {held_up * 1000:g}", f"≤ {LAG_GOAL * 1000:g}", verdict(held_up <= LAG_GOAL)),
    ]
    return [table]


def _milliseconds(name: str, *seconds: float) -> tuple[str, ...]:
    return name, *(f"{value * 1000:.1f}" for value in seconds), "", ""


def _lags(port: int) -> dict[float, float]:
    """How many timers were at most so late, by bound in seconds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return {float(bound): float(count) for bound, count in _BUCKET.findall(answer.read().decode())}
