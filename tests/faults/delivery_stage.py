"""A delivery worker on separate servers, with a proxy before each of them, and the ledger of what left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import psutil

from scripts.database import apply_schema, create_database, execute, query
from scripts.services import Delivery, Postgres, Ses, Sqs, Valkey, processes, start_together
from tests.faults.stage import wait_until
from tests.support.proxy import Proxy

#: The folder of the code that is tested.
ROOT = Path(__file__).resolve().parents[2]

_INSERT = """
INSERT INTO emails (id, "from", "to", subject, html, text, user_id)
SELECT id, 'Ann <ann@example.com>', '["to@x.example"]', 's', '', 't', 'user ' || number % 7
  FROM unnest('{{{ids}}}'::uuid[]) WITH ORDINALITY AS mails (id, number)"""


@dataclass(slots=True)
class Ledger:
    """Both ends: the rows with their events, and what the provider took."""

    mails: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    #: Mails that the provider never had, though their rows say `sent`.
    lost: list[str] = field(default_factory=list)
    #: Mails beyond the first of a row, and those of them before which it was not said to be unclear.
    copies: int = 0
    #: Mails whose answers were lost until their attempts were used up.
    failed_and_taken: int = 0
    unexplained: list[str] = field(default_factory=list)
    #: Mails of which it was unclear whether the provider had them, by what was decided.
    unclear: Counter[str] = field(default_factory=Counter)
    #: Mails without the one event of their status.
    without_event: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError where a promise was broken."""
        assert self.mails == self.statuses["sent"] + self.statuses["failed"], self
        assert not self.lost, self
        assert not self.unexplained, self
        assert not self.without_event, self


class DeliveryStage:
    """The workers know the proxies alone."""

    def __init__(
        self,
        directory: Path,
        *,
        queue: bool = False,
        processes: int = 2,
        checkouts: Sequence[Path] = (ROOT,),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`queue`: jobs come by SQS. `checkouts`: for each of these folders a service that runs the code in it, with so
        many delivery `processes`. `settings`: further ones.
        """
        self.postgres = Postgres(directory / "postgres", durable=False)
        self.valkey = Valkey(directory / "valkey")
        self.sqs = Sqs(directory / "sqs") if queue else None
        self.ses = Ses(directory / "ses")
        self._processes = processes
        self._checkouts = checkouts
        self._settings = settings or {}
        self._directory = directory
        self._closing = contextlib.ExitStack()
        #: Ids of all mails.
        self.mails: list[str] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            servers = [self.postgres, self.valkey, self.ses, *([self.sqs] if self.sqs else [])]
            start_together(*servers)
            for server in servers:
                closing.callback(server.stop)
            self.database_url = create_database(self.postgres.url(), "delivery_faults")
            apply_schema(self.database_url)
            proxies = {server.name: closing.enter_context(Proxy(server.port)) for server in servers}
            self.proxies = proxies
            environment = {
                "DATABASE_URL": through(self.database_url, proxies[self.postgres.name]),
                "REDIS_URL": through(self.valkey.url, proxies[self.valkey.name]),
                **self.ses.client_environment,
                "AWS_ENDPOINT_URL_SESV2": f"http://127.0.0.1:{proxies[self.ses.name].port}",
                "SMTP_RELAY_DELIVERY_PROCESSES": str(self._processes),
                "SMTP_RELAY_DELIVERY_CONCURRENCY": "10",
                "SMTP_RELAY_DRAIN_SECONDS": "5",
            }
            if self.sqs is not None:
                self.queue_url = self.sqs.create_queue(f"q{uuid.uuid4().hex}")
                environment |= {
                    "AWS_ENDPOINT_URL_SQS": f"http://127.0.0.1:{proxies[self.sqs.name].port}",
                    "AWS_REGION": self.sqs.region,
                    "BACKGROUND_JOBS_QUEUE_URL": self.queue_url,
                }
            environment |= self._settings
            self.services = [
                Delivery(self._directory / f"worker-{number}", environment, checkout=checkout)
                for number, checkout in enumerate(self._checkouts)
            ]
            for service in self.services:
                closing.callback(service.stop)
            start_together(*self.services)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    # What is to leave.

    def add(self, count: int) -> None:
        """Adds so many mails, with their jobs. Not by way of the proxies."""
        ids = [str(uuid.uuid4()) for _ in range(count)]
        execute(self.database_url, _INSERT.format(ids=",".join(ids)))
        self.mails += ids
        if self.sqs is None:
            return
        client = self.sqs.client()
        for first in range(0, len(ids), 10):
            jobs = [
                {"id": f"email.send:{email_id}", "type": "email.send", "source": "api", "emailId": email_id}
                for email_id in ids[first : first + 10]
            ]
            client.send_message_batch(
                QueueUrl=self.queue_url,
                Entries=[{"Id": str(number), "MessageBody": json.dumps(job)} for number, job in enumerate(jobs)],
            )

    def count(self, *statuses: str) -> int:
        """How many mails have one of these statuses."""
        wanted = ", ".join(f"'{status}'" for status in statuses)
        ((count,),) = query(self.database_url, f"SELECT count(*) FROM emails WHERE status IN ({wanted})")
        return int(str(count))

    # What is broken.

    def workers(self, service: Delivery) -> list[psutil.Process]:
        """The delivery processes of a service."""
        return processes.serving(service.pid) if service.running else []

    def kill_master(self, service: Delivery) -> None:
        """SIGKILL for the master alone: its processes end by themselves. And a new start."""
        family = processes.children(service.pid)
        os.kill(service.pid, signal.SIGKILL)
        psutil.wait_procs(family, timeout=20)
        self.kill_all(service)

    def kill_all(self, service: Delivery) -> None:
        """SIGKILL for the master and all below it, and a new start."""
        service.kill()
        service.start()

    def revive(self) -> None:
        """Starts again each service that has ended by itself."""
        for service in self.services:
            if not service.running:
                self.kill_all(service)

    # What came of it.

    def end_leases(self) -> int:
        """As if the leases of all claims were over; of how many."""
        claimed = self.count("processing")
        execute(
            self.database_url,
            "UPDATE emails SET provider_last_attempted_at = provider_last_attempted_at - interval '1 hour',"
            " provider_next_retry_at = provider_next_retry_at - interval '1 hour' WHERE status = 'processing'",
        )
        return claimed

    def settle(self, seconds: float) -> None:
        """Waits until each mail has come to its end; what waits for a later try may leave at once."""

        def over() -> bool:
            self.revive()
            execute(self.database_url, "UPDATE emails SET provider_next_retry_at = now() WHERE status = 'queued'")
            return self.count("queued", "processing") == 0

        wait_until(over, "all mail has left", seconds=seconds)

    def ledger(self) -> Ledger:
        """Compares both ends."""
        rows = {
            str(email_id): str(status)
            for email_id, status in query(self.database_url, "SELECT id::text, status FROM emails")
        }
        events = Counter(
            (str(email_id), str(kind))
            for email_id, kind in query(self.database_url, "SELECT email_id::text, type FROM email_events")
        )
        taken = Counter(each.email_id for each in self.ses.taken())
        decisions = self.decisions()
        again = Counter(email_id for email_id, decision in decisions if decision == "again")
        ledger = Ledger(mails=len(self.mails), statuses=Counter(map(str, rows.values())))
        ledger.unclear = Counter(decision for _, decision in decisions)
        for email_id in self.mails:
            status, copies = str(rows[email_id]), max(0, taken[email_id] - 1)
            ledger.copies += copies
            if copies > again[email_id]:
                ledger.unexplained.append(email_id)
            ledger.failed_and_taken += status == "failed" and taken[email_id] > 0
            if status == "sent" and not taken[email_id]:
                ledger.lost.append(email_id)
            if events[email_id, status] != 1:
                ledger.without_event.append(f"{email_id}: {status}")
        return ledger

    def log(self) -> list[dict[str, Any]]:
        """What the services wrote, but for lines that were cut off by a kill."""
        return [line for service in self.services for line in log_of(service)]

    def decisions(self) -> list[tuple[str, str]]:
        """What was decided on mails that the provider may have had."""
        return [(line["email_id"], line["decision"]) for line in self.log() if line.get("event") == "delivery_unclear"]


def log_of(service: Delivery) -> list[dict[str, Any]]:
    """What one service wrote, but for lines that were cut off by a kill."""
    lines = []
    for line in service.log_path.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def through(url: str, proxy: Proxy) -> str:
    """The URL of a server by way of its proxy."""
    parts = urlsplit(url)
    account, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account}{at}{proxy.host}:{proxy.port}"))
