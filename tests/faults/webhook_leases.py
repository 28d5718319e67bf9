"""A worker is killed while it calls webhooks: another one makes the same attempts when the leases are over."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.database import apply_schema, create_database, query
from scripts.services import Postgres, WebhookSink, WebhookWorker
from tests.faults.stage import wait_until
from tests.support.webhook_rows import MATERIAL, add_delivery, add_event, add_webhook

#: Deliveries, each of another webhook: so all of them are made at the same time.
DELIVERIES: Final = 10
#: Seconds from the end of a lease until the attempt has been made by another worker, at most.
MARGIN_SECONDS: Final = 10.0
#: Milliseconds after which the endpoint answers: the worker must be stopped before that.
_ANSWER_MS: Final = 4_000
_CLAIMED: Final = """
SELECT id::text, extract(epoch FROM next_retry_at)::float8 FROM webhook_deliveries
 WHERE status = 'pending' AND attempt = 0 AND next_retry_at > clock_timestamp()"""
_MADE: Final = """
SELECT id::text, status, attempt, extract(epoch FROM attempted_at)::float8 FROM webhook_deliveries"""


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    #: Seconds from the end of a lease to the next attempt, of each delivery that the killed worker had claimed.
    late: list[float]
    #: Calls with each svix-id.
    calls: Counter[str]
    #: Deliveries that were not made in the end, and those with more than one svix-id.
    not_made: list[str]
    renamed: list[str]

    def check(self) -> None:
        """Raises AssertionError where a promise was broken."""
        assert not self.not_made, self.not_made
        assert not self.renamed, self.renamed
        assert all(count <= 2 for count in self.calls.values()), self.calls
        assert min(self.late) >= 0.0, "an attempt was repeated before the lease was over"
        assert max(self.late) <= MARGIN_SECONDS, self.late


def kill_during_calls(directory: Path) -> Outcome:
    """Kills a worker in the middle of its calls, waits for the leases, which are real ones, and compares both ends."""
    (directory / "postgres").mkdir(parents=True)
    with Postgres(directory / "postgres", durable=False) as postgres, WebhookSink(directory / "sink") as sink:
        url = create_database(postgres.url(), "leases")
        apply_schema(url)
        _add(url, sink)
        settings = {
            "DATABASE_URL": url,
            "WEBHOOK_SECRET_ENCRYPTION_KEY": MATERIAL,
            "SMTP_RELAY_PROVIDER": "maildir",
            "SMTP_RELAY_MAILDIR": str(directory / "mails"),
        }
        first, second = (WebhookWorker(directory / name, sink, settings) for name in ("first", "second"))
        with first:
            wait_until(lambda: len(sink.taken()) == DELIVERIES, "all calls have begun", seconds=60.0)
            # From here on it records nothing, and the other worker has time to start.
            first.send_signal(signal.SIGSTOP)
            with second:
                claimed = {str(delivery): float(str(end)) for delivery, end in query(url, _CLAIMED)}
                assert claimed, "the worker had claimed nothing when it was killed"
                first.kill()
                pending = "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'"
                wait_until(lambda: query(url, pending) == [(0,)], "all is delivered", seconds=120.0)
        made = [(str(each), status, attempt, float(str(at))) for each, status, attempt, at in query(url, _MADE)]
        ids = Counter(hook.id for hook in sink.taken())
        return Outcome(
            late=[at - claimed[each] for each, _, _, at in made if each in claimed],
            calls=ids,
            not_made=[each for each, status, attempt, _ in made if (status, attempt) != ("success", 1)],
            renamed=[each for each, count in Counter(name.split("_")[1] for name in ids).items() if count > 1],
        )


def _add(url: str, sink: WebhookSink) -> None:
    event = add_event(url, kind="delivered")
    for number in range(DELIVERIES):
        add_delivery(url, add_webhook(url, sink.url(f"/ms/{_ANSWER_MS}?{number}")), event)
