"""`python -m scripts.benchmark.way_out`: from the 250 at the SMTP door until SES has the mail, on an idle system.

Relay, delivery worker, Postgres, Valkey, SQS's double and SES's double; one small mail after the other, a random time
apart, so that no loop keeps step with them. In both modes: jobs of the queue, and rows that are found in Postgres.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.way_out instead.")

import argparse
import os
import random
import smtplib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from scripts.database import NewApiKey, apply_schema, create_api_key, create_database
from scripts.services import Delivery, Postgres, Relay, Ses, Sqs, Valkey, start_together

#: Milliseconds, the median.
GOAL: Final = 300.0
MODES: Final = ("queue", "fifo", "postgres")
_PATIENCE_SECONDS: Final = 60.0


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goal in each mode, 1 beyond it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.way_out", description=__doc__)
    parser.add_argument("--mode", choices=MODES, action="append", help="may be repeated; the default is all")
    parser.add_argument("--mails", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1, help="delivery processes")
    options = parser.parse_args(arguments)
    met = True
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        directory = Path(folder)
        postgres, valkey = Postgres(directory / "postgres", durable=False), Valkey(directory / "valkey")
        sqs, ses = Sqs(directory / "sqs"), Ses(directory / "ses")
        with postgres, valkey, sqs, ses:
            for mode in options.mode or MODES:
                url = create_database(postgres.url(), f"mode_{mode}")
                apply_schema(url)
                settings: dict[str, str | None] = {
                    **sqs.client_environment,
                    **ses.client_environment,
                    "DATABASE_URL": url,
                    "REDIS_URL": valkey.url,
                    "SMTP_RELAY_DELIVERY_PROCESSES": str(options.processes),
                }
                if mode != "postgres":
                    settings["BACKGROUND_JOBS_QUEUE_URL"] = sqs.create_queue("jobs.fifo" if mode == "fifo" else "jobs")
                relay = Relay(directory / f"relay-{mode}", settings)
                delivery = Delivery(directory / f"delivery-{mode}", settings)
                start_together(relay, delivery)
                try:
                    times = measure(relay, ses, create_api_key(url), options.mails)
                finally:
                    delivery.stop()
                    relay.stop()
                cuts = statistics.quantiles(times, n=100)
                print(f"{mode:>9}: p50 {cuts[49]:.0f} ms, p90 {cuts[89]:.0f} ms, max {max(times):.0f} ms", flush=True)
                met = met and cuts[49] <= GOAL
    return 0 if met else 1


def measure(relay: Relay, ses: Ses, key: NewApiKey, mails: int) -> list[float]:
    """Milliseconds from the 250 of each mail until SES's double had it, by the time of the file that it wrote."""
    ses.forget()
    generator = random.Random(1)  # noqa: S311 - spreads the mails over the loops' times
    accepted: dict[str, float] = {}
    with smtplib.SMTP(relay.host, relay.port, timeout=30) as client:
        client.login("key", key.token)
        for number in range(mails):
            time.sleep(generator.uniform(0.3, 0.9))
            client.mail("ann@example.com")
            client.rcpt("to@x.example")
            _, reply = client.data(
                f"From: ann@example.com\r\nTo: to@x.example\r\nSubject: {number}\r\n\r\nHello\r\n".encode()
            )
            accepted[reply.decode().split()[-1]] = time.time()
    until = time.monotonic() + _PATIENCE_SECONDS
    while len(ses.taken()) < mails:
        if time.monotonic() > until:
            raise TimeoutError(f"SES has {len(ses.taken())} of {mails} mails")
        time.sleep(0.1)
    written = [path.stat().st_mtime for path in sorted(ses.folder.glob("[0-9]*.json"))]
    return [(moment - accepted[taken.email_id]) * 1000 for taken, moment in zip(ses.taken(), written, strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
