"""`python -m scripts.benchmark.webhooks`: webhook deliveries a second, and memory with a dead endpoint.

The service is the whole of `python -m relay.delivery`, with SES as its provider. The rate is that of one delivery
process to endpoints that answer after 20 ms, over TLS, a connection for each call, on a machine that it shares with
Postgres and with the server of the endpoints; the CPU of the service is given beside it. For the memory 10,000
deliveries are due to an endpoint that never answers. It is given twice: PSS of master, template and delivery process
together, where a page that another program has as well counts in part, and RSS of the delivery process alone.

With `--backlog` so many deliveries are due to that endpoint, in the middle of the table, and deliveries of other
endpoints are added meanwhile. What one look takes is measured without the service.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.webhooks instead.")

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from relay.delivery.webhook_looks import WebhookLooks
from relay.delivery.webhooks import LOOK_MOST
from relay.postgres.database import Database
from relay.postgres.webhook_deliveries import PLANNER, WebhookDeliveries
from scripts.benchmark.subjects import PeakRss, cpu_seconds
from scripts.database import apply_schema, create_database, create_webhook, execute, query
from scripts.services import Postgres, Ses, WebhookService, WebhookSink
from scripts.services.processes import family

_PATIENCE_SECONDS: Final = 300.0
_MEMORY_SECONDS: Final = 15.0
_MB: Final = 1_000_000
#: Of a backlog: deliveries of another endpoint that are added, and the seconds that a look may take.
_ADDED: Final = 20
_LOOK_GOAL: Final = 0.5
_OTHERS_LEFT: Final = """
SELECT count(*) FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
 WHERE w.user_id <> 'user' AND d.status = 'pending'"""


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goals, 1 not."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.webhooks", description=__doc__)
    parser.add_argument("--deliveries", type=int, default=6000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--dead", type=int, default=10_000, help="deliveries due to the dead endpoint")
    parser.add_argument("--backlog", type=int, help="deliveries due to the dead endpoint, and nothing but this")
    parser.add_argument("--goal-rate", type=float, default=300.0, help="deliveries a second")
    parser.add_argument("--goal-memory", type=int, default=80, help="MB of 1,000,000 octets")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        directory = Path(folder)
        (directory / "postgres").mkdir()
        with (
            Postgres(directory / "postgres", durable=True) as postgres,
            WebhookSink(directory / "sink") as sink,
            Ses(directory / "ses") as ses,
        ):
            template = create_database(postgres.url(), "contract")
            apply_schema(template)
            if options.backlog is not None:
                url = create_database(postgres.url(), "backlog", "contract")
                service = WebhookService(directory / "backlog", sink, settings(url, ses))
                return report_backlog(url, sink, service, options.backlog, options.goal_memory * _MB)
            url = create_database(postgres.url(), "rate", "contract")
            service = WebhookService(directory / "rate", sink, settings(url, ses))
            rate, cpu = measure_rate(url, sink, service, options.deliveries, options.endpoints)
            print(f"{rate:.0f} deliveries a second, {cpu * 1000:.2f} ms of CPU each in the service", flush=True)
            url = create_database(postgres.url(), "memory", "contract")
            service = WebhookService(directory / "memory", sink, settings(url, ses))
            whole, process = measure_memory(url, sink, service, options.dead)
            figures = f"{whole / _MB:.0f} MB at most (PSS of all processes), {process / _MB:.0f} MB (RSS of one)"
            print(f"{figures} with {options.dead} due to a dead endpoint", flush=True)
    return 0 if rate >= options.goal_rate and max(whole, process) <= options.goal_memory * _MB else 1


def measure_rate(
    url: str, sink: WebhookSink, service: WebhookService, deliveries: int, endpoints: int
) -> tuple[float, float]:
    """Deliveries a second, by the times that were recorded, and seconds of CPU of one."""
    for number in range(endpoints):
        add(url, sink.url(f"/ms/20?{number}"), deliveries // endpoints, user=f"user {number}")
    with service:
        before = cpu_seconds(service.pid)
        _until(lambda: query(url, "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'") == [(0,)])
        cpu = cpu_seconds(service.pid) - before
    rows = query(
        url,
        "SELECT extract(epoch FROM max(attempted_at) - min(attempted_at))::float8, count(*)"
        " FROM webhook_deliveries WHERE status = 'success'",
    )
    ((seconds, count),) = ((float(str(first)), int(str(second))) for first, second in rows)
    if count != deliveries // endpoints * endpoints:
        raise AssertionError("not all were delivered")
    return count / seconds, cpu / count


def measure_memory(url: str, sink: WebhookSink, service: WebhookService, deliveries: int) -> tuple[int, int]:
    """The most octets while so many are due to an endpoint that does not answer: see above."""
    add(url, sink.url("/hang"), deliveries, user="user")
    with service:
        with PeakRss(service.pid) as peak:
            time.sleep(_MEMORY_SECONDS)
        # The heap of a process that has no large pieces of memory does not shrink: what it has is the most it had.
        most = max(process.memory_info().rss for process in family(service.pid))
    return peak.octets, most


def report_backlog(url: str, sink: WebhookSink, service: WebhookService, deliveries: int, goal: int) -> int:
    """Prints what a backlog does to looks, to other endpoints, and to memory. The exit status."""
    add(url, sink.url("/ok?before"), 20, user="before")
    add(url, sink.url("/hang"), deliveries, user="user", events=1)
    add(url, sink.url("/ok?behind"), 20, user="behind")
    looks = time_looks(url)
    print(f"a round is {len(looks)} looks of {max(looks):.3f} s at most, {sum(looks):.2f} s together", flush=True)
    with service, PeakRss(service.pid) as peak:
        began = time.monotonic()
        _until(lambda: query(url, _OTHERS_LEFT) == [(0,)])
        print(f"40 deliveries before and behind the backlog are made in {time.monotonic() - began:.1f} s", flush=True)
        for _ in range(_ADDED):
            add(url, sink.url("/ok?new"), 1, user="new")
            time.sleep(0.5)
        _until(lambda: query(url, _OTHERS_LEFT) == [(0,)])
    rows = query(
        url,
        "SELECT extract(epoch FROM d.attempted_at - d.created_at)::float8 FROM webhook_deliveries d"
        " JOIN webhooks w ON w.id = d.webhook_id WHERE w.user_id = 'new'",
    )
    seconds = sorted(float(str(each)) for (each,) in rows)
    print(f"a new one is made in {seconds[len(seconds) // 2]:.2f} s, {seconds[-1]:.2f} s at most", flush=True)
    print(f"{peak.octets / _MB:.0f} MB at most (PSS of all processes) with {deliveries} due to a dead endpoint")
    return 0 if max(looks) < _LOOK_GOAL and peak.octets <= goal else 1


def time_looks(url: str) -> list[float]:
    """What each look of a round takes, in seconds, where nothing is known of any delivery."""
    database = Database(url, statement_seconds=60.0, idle_limit=1, switched_off=PLANNER)
    looks = WebhookLooks(WebhookDeliveries(database, deadline=60.0))
    taken: list[float] = []
    while not taken or looks.in_parts:
        began = time.perf_counter()
        looks.look(LOOK_MOST, [])
        taken.append(time.perf_counter() - began)
    database.close()
    return taken


def settings(url: str, ses: Ses) -> dict[str, str]:
    """The service's."""
    return {**ses.client_environment, "DATABASE_URL": url, "SMTP_RELAY_LOG_LEVEL": "info"}


def add(url: str, target: str, deliveries: int, *, user: str, events: int | None = None) -> None:
    """A webhook and deliveries that are due to it, each of a different event; or of so many events."""
    webhook = create_webhook(url, "email.delivered", url=target, user_id=user)
    execute(
        url,
        "WITH events AS (INSERT INTO email_events (id, type, payload, user_id) SELECT gen_random_uuid(), 'delivered',"
        " jsonb_build_object('timestamp', now(), 'recipients', jsonb_build_array('to@x.example'), 'n', n), %s"
        " FROM generate_series(1, %s) AS n RETURNING id)"
        " INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status)"
        " SELECT gen_random_uuid(), %s, id, 0, 'pending' FROM events, generate_series(1, %s)",
        (user, deliveries if events is None else events, webhook, 1 if events is None else deliveries // events),
    )


def _until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + _PATIENCE_SECONDS
    while not done():
        if time.monotonic() > limit:
            raise AssertionError("it took too long")
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
