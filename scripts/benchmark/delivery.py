"""What a mail costs the delivery worker, beside the naive worker of scripts/yardstick, in the same run.

Each has a separate database with the same rows, and both send to the same stand-in for SES, one after the other in
rounds that alternate. A mail counts once its row says `sent`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from scripts.benchmark import delivery_memory
from scripts.benchmark.plan import Plan
from scripts.benchmark.report import Series, Table, say, verdict
from scripts.benchmark.subjects import ROOT, Stage, cpu_seconds, rss, wait_until_at_rest
from scripts.benchmark.swiftses import SwiftSes
from scripts.database import apply_schema, create_database, drop_database, execute, query
from scripts.services import Delivery, Server, Ses

#: What is asked of CPU per mail, as a ratio to the yardstick's.
COST_GOALS: Final[Mapping[str, float]] = MappingProxyType(
    {"1.2 KB": 0.20, "25 KB of HTML, 40 links": 0.20, "attachment of 150 KB": 0.25}
)
#: What is asked of one process's throughput, as a ratio to the yardstick's, where SES answers after so long.
THROUGHPUT_GOAL: Final = 10.0
ANSWER_MILLISECONDS: Final = 20
#: Statements to Postgres for a mail, and mails that are on their way while they are counted.
STATEMENTS_GOAL: Final = 3.0
IN_FLIGHT: Final = 50
#: MB of 1,000,000 octets with two mails of 39 MB among twenty; and growth, as for the relay's soak.
MEMORY_GOAL: Final = 150.0
GROWTH_GOAL: Final = 1.1
#: The yardstick gets one mail for so many of the relay's.
_SLOWER: Final = 8
_PATIENCE_SECONDS: Final = 300.0
_MB: Final = 1_000_000

SETTINGS: Final = MappingProxyType(
    {
        "AWS_REGION": "us-east-1",
        "TRACKING_SECRET": "a secret of sixteen",
        "TRACKING_BASE_URL": "https://app.example",
    }
)


class YardstickSender(Server):
    """`scripts/yardstick/sender.py` as a process."""

    name = "The yardstick's sender"

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        super().__init__(directory)
        self._settings = settings

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, str(ROOT / "scripts" / "yardstick" / "sender.py"), self.directory.name]

    def environment(self) -> dict[str, str]:
        """See Server."""
        return {**super().environment(), **self._settings}

    def answers(self) -> bool:
        """It says nothing when it is ready: the first mails are its warm-up."""
        return True


@dataclass(frozen=True, slots=True)
class Subject:
    """A worker, and the database that it works on."""

    server: Server
    database_url: str


@dataclass(frozen=True, slots=True)
class Sample:
    """So many mails of one subject."""

    mails: int
    #: User and system, of all processes of the subject, in seconds.
    cpu: float
    #: From the first row that says `sent` to the last, in seconds.
    span: float

    @property
    def cpu_ms(self) -> float:
        """Milliseconds a mail."""
        return self.cpu / self.mails * 1000

    @property
    def rate(self) -> float:
        """Mails a second."""
        return self.mails / self.span


def delivery(stage: Stage, plan: Plan) -> list[Table]:
    """All that is asked of the delivery worker's cost."""
    return [*_cost(stage, plan), _throughput(stage, plan), _statements(stage, plan), _memory(stage, plan)]


def _cost(stage: Stage, plan: Plan) -> list[Table]:
    table = Table(
        "CPU of the delivery worker per mail",
        ("mail", "yardstick, ms", "worker, ms", "ratio", "goal", ""),
        note="From a queued row to a row that says `sent`, with its event, without a queue; links and opens tracked;"
        " one process, 20 mails at a time. The yardstick (scripts/yardstick/sender.py) is boto3, the standard library's"
        " email and psycopg2, one row after the other. Both send to the same stand-in for SES, which answers at once"
        " (scripts/benchmark/swiftses.py).",
    )
    samples: dict[str, dict[str, list[Sample]]] = {name: {"yardstick": [], "worker": []} for name in COST_GOALS}
    with SwiftSes(stage.directory / "swiftses") as ses, subjects(stage, ses) as both:
        # The first round is not counted: compilers, caches and pools get their warm-up.
        for number in range(plan.rounds + 1):
            for name, row in mails().items():
                for subject in list(both)[:: -1 if number % 2 else 1]:
                    sample = measure(both[subject], row, _count(plan, subject))
                    if number:
                        samples[name][subject].append(sample)
                        say(f"  {number}/{plan.rounds}  {name:<28} {subject:<10} {sample.cpu_ms:9.3f} ms")
    for name, goal in COST_GOALS.items():
        theirs, ours = (Series([each.cpu_ms for each in samples[name][who]]) for who in ("yardstick", "worker"))
        ratio = ours / theirs
        figures = (theirs.text(".3f"), ours.text(".3f"), ratio.text(".2f"))
        table.rows.append((name, *figures, f"≤ {goal:.2f}", verdict(ratio.median <= goal)))
    return [table]


def _throughput(stage: Stage, plan: Plan) -> Table:
    table = Table(
        f"Throughput of one delivery process, where SES answers after {ANSWER_MILLISECONDS} ms",
        ("mail", "yardstick, mails/s", "worker, mails/s", "ratio", "goal", ""),
        note="Stand-in and Postgres share the machine's cores with the worker.",
    )
    rates: dict[str, Series] = {"yardstick": Series(), "worker": Series()}
    row = mails()["1.2 KB"]
    with SwiftSes(stage.directory / "slowses", ANSWER_MILLISECONDS) as ses, subjects(stage, ses) as both:
        for number in range(plan.rounds + 1):
            for subject in both:
                sample = measure(both[subject], row, _count(plan, subject))
                if number:
                    rates[subject].values.append(sample.rate)
    ratio = rates["worker"] / rates["yardstick"]
    figures = (rates["yardstick"].text(",.0f"), rates["worker"].text(",.0f"), ratio.text(".1f"))
    table.rows.append(("1.2 KB", *figures, f"≥ {THROUGHPUT_GOAL:.0f}", verdict(ratio.median >= THROUGHPUT_GOAL)))
    return table


def _statements(stage: Stage, plan: Plan) -> Table:
    table = Table(
        "Statements to Postgres for a mail that leaves",
        ("", "statements a mail", "goal", ""),
        note="Counted by pg_stat_statements, with all that the worker asks beside: looks for rows and scans.",
    )
    more = {"SMTP_RELAY_DELIVERY_CONCURRENCY": str(IN_FLIGHT)}
    with SwiftSes(stage.directory / "slowses", ANSWER_MILLISECONDS) as ses, subjects(stage, ses, **more) as both:
        worker = both["worker"]
        measure(worker, mails()["1.2 KB"], IN_FLIGHT)
        execute(worker.database_url, "SELECT pg_stat_statements_reset()")
        measure(worker, mails()["1.2 KB"], plan.delivered)
        each = statements(worker.database_url) / plan.delivered
    goal = f"≤ {STATEMENTS_GOAL:.0f}"
    table.rows.append((f"{IN_FLIGHT} mails at a time", f"{each:.2f}", goal, verdict(each <= STATEMENTS_GOAL)))
    return table


def statements(database_url: str) -> int:
    """How many statements others than these benchmarks' were carried out in this database since the last reset."""
    ((calls,),) = query(
        database_url,
        "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid"
        " WHERE d.datname = current_database() AND query !~* 'pg_stat_statements|benchmark|TRUNCATE|CHECKPOINT'",
    )
    return int(str(calls))


def _memory(stage: Stage, plan: Plan) -> Table:
    table = Table("Memory of a delivery process", ("", "measured", "goal", ""), note="MB are 1,000,000 octets.")
    worst = 0
    with Ses(stage.directory / "ses") as strict:
        for kind in delivery_memory.KINDS:
            with _database(stage, f"delivery_{kind}") as url:
                worst = max(worst, delivery_memory.measure(url, strict, (kind, kind), 39_000_000, stage.directory)[1])
    name = "20 mails at a time, two of 39 MB, the most, MB"
    table.rows.append((name, f"{worst / _MB:.0f}", f"≤ {MEMORY_GOAL:.0f}", verdict(worst <= MEMORY_GOAL * _MB)))
    readings: list[int] = []
    with SwiftSes(stage.directory / "swiftses") as ses, subjects(stage, ses) as both:
        for step in range(10):
            row = list(mails().values())[step % 2]
            measure(both["worker"], row, plan.delivery_soak // 10)
            readings.append(rss(both["worker"].server.pid))
    growth = readings[-1] / readings[1]
    megabytes = f"{readings[1] / _MB:.1f} → {readings[-1] / _MB:.1f}"
    name = f"after a fifth of {plan.delivery_soak:,} mails, and at the end, all processes, MB"
    table.rows.append((name, f"{megabytes} ({growth:.2f})", f"≤ {GROWTH_GOAL}", verdict(growth <= GROWTH_GOAL)))
    return table


@contextmanager
def subjects(stage: Stage, ses: SwiftSes, **settings: str) -> Iterator[dict[str, Subject]]:
    """Both workers at work on empty databases of their own."""
    with _database(stage, "delivery_worker") as ours, _database(stage, "delivery_yardstick") as theirs:
        common = {**SETTINGS, **ses.client_environment}
        inherited = dict.fromkeys(name for name in os.environ if name.startswith(("SMTP_RELAY_", "BACKGROUND_JOBS_")))
        environment = {**inherited, **common, "DATABASE_URL": ours, "REDIS_URL": stage.valkey.url, **settings}
        with (
            Delivery(stage.directory / "delivery", environment) as worker,
            YardstickSender(stage.directory / "sender", {**common, "DATABASE_URL": theirs}) as yardstick,
        ):
            yield {"worker": Subject(worker, ours), "yardstick": Subject(yardstick, theirs)}


@contextmanager
def _database(stage: Stage, name: str) -> Iterator[str]:
    drop_database(stage.postgres.url(), name)
    url = create_database(stage.postgres.url(), name)
    apply_schema(url)
    execute(url, "CREATE EXTENSION pg_stat_statements")
    if name in ("delivery_worker", "delivery_yardstick"):
        execute(
            url,
            "INSERT INTO domains (id, name, status, track_clicks, track_opens, user_id)"
            " VALUES (gen_random_uuid(), 'shop.example', 'verified', true, true, 'user');"
            # One address is suppressed, so that no worker can do without a look-up.
            "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
            " SELECT gen_random_uuid(), 'user', 'gone-' || n || '@example.net', 'bounced', now(), now()"
            " FROM generate_series(1, 1000) n; ANALYZE",
        )
    yield url
    drop_database(stage.postgres.url(), name)


def measure(subject: Subject, row: Mapping[str, object], mails: int) -> Sample:
    """Has so many mails of this kind delivered, on an empty table. Raises RuntimeError where that takes too long."""
    url, pid = subject.database_url, subject.server.pid
    execute(url, "TRUNCATE emails CASCADE")
    execute(url, "CHECKPOINT")
    wait_until_at_rest(pid)
    before = cpu_seconds(pid)
    names = ", ".join(f'"{name}"' for name in row)
    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
    places = ", ".join(["%s"] * len(row))
    execute(
        url,
        f"INSERT INTO emails (id, {names}, created_at) SELECT gen_random_uuid(), {places}, clock_timestamp()"  # noqa: S608 - our own names
        " FROM generate_series(1, %s) AS benchmark",
        (*values, mails),
    )
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while query(url, "SELECT count(*) FROM emails AS benchmark WHERE status = 'sent'") != [(mails,)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{subject.server.name}: not finished in time, see {subject.server.log_path}")
        time.sleep(0.2)
    wait_until_at_rest(pid)
    cpu = cpu_seconds(pid) - before
    ((events, span),) = query(
        url,
        "SELECT (SELECT count(*) FROM email_events WHERE type = 'sent'),"
        " extract(epoch FROM max(sent_at) - min(sent_at))::float8 FROM emails AS benchmark",
    )
    if events != mails:
        raise RuntimeError(f"{subject.server.name}: {events} events of {mails} mails")
    return Sample(mails, cpu=cpu, span=float(str(span)) or 1e-3)


def _count(plan: Plan, subject: str) -> int:
    return plan.delivered // _SLOWER if subject == "yardstick" else plan.delivered


def mails() -> dict[str, dict[str, object]]:
    """The rows, by the names of COST_GOALS."""
    line = "thank you for your purchase, we have received your payment and will send it\n"
    link = '<p><a href="https://shop.example/orders/%d?item=%d&amp;from=mail">the item that you ordered</a>.</p>\n'
    paragraph = f'<p class="text">{line.strip()}</p>\n'
    common: dict[str, object] = {
        "from": "Example Shop <orders@shop.example>",
        "to": ["customer@example.net"],
        "subject": "Your order has been sent",
        "user_id": "user",
        "headers": {"X-Mailer": "Shop 4.2"},
        "html": "",
        "text": "",
        "attachments": [],
    }
    head, foot = '<!DOCTYPE html>\n<html><head><meta charset="utf-8"></head>\n<body>\n', "</body></html>\n"
    links = "".join(link % (number, number) + paragraph * 5 for number in range(40)) + paragraph * 18
    short = head + paragraph * 4 + link % (1, 1) + foot
    invoice = b64encode(bytes(range(256)) * 586).decode()
    return {
        "1.2 KB": {**common, "text": line * 7, "html": short},
        "25 KB of HTML, 40 links": {**common, "html": head + links + foot},
        "attachment of 150 KB": {
            **common,
            "text": line * 7,
            "attachments": [{"filename": "invoice.pdf", "content": invoice, "content_type": "application/pdf"}],
        },
    }
