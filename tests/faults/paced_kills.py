"""Delivery processes are killed while they hold permits of one account: its rate is kept, and the others use it.

Three real processes, and a double of SES that needs little CPU (scripts/benchmark/swiftses.py). Besides, mails above
10 MB from all of them at a time. What an account takes of those a second is more than two processors can compose, so it
is lowered there.
"""

from __future__ import annotations

import random
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scripts.benchmark.delivery_memory import add, add_alike
from scripts.benchmark.swiftses import SwiftSes
from scripts.database import apply_schema, create_database, query
from scripts.services import Delivery, Postgres, Valkey, processes
from scripts.services.ses_ledger import TOLERANCE
from tests.faults.stage import wait_until

PROCESSES: Final = 3
#: Recipients a second of the account: far below what a machine with other work can do.
RATE: Final = 100.0
#: Seconds after a kill in which what is used of the rate is looked at.
AFTER_SECONDS: Final = 2.0
#: Octets of a large mail, about, and how many of those a second leave.
LARGE_OCTETS: Final = 12_000_000
OCTETS_A_SECOND: Final = 2_000_000
_WITH_FEWER_OCTETS: Final = f"""
import relay.core.allowance
relay.core.allowance.OCTETS_A_SECOND = {OCTETS_A_SECOND}.0
from relay.delivery.__main__ import main
main([])
"""


@dataclass(slots=True)
class Killed:
    """What came of it. Parts of the rate: what the account took of what it would have taken."""

    kills: int = 0
    #: The most recipients of any second.
    most: int = 0
    used: float = 0.0
    #: The parts that were used in the seconds after each kill of one process, and of all of them.
    after_one: list[float] = field(default_factory=list)
    after_all: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Raises AssertionError where a promise was broken."""
        assert self.most <= RATE * TOLERANCE, self
        assert min(self.after_one) >= 0.5, self


@dataclass(slots=True)
class LargeMails:
    """What came of mails of LARGE_OCTETS. Octets as SES gets them, without Base64."""

    mails: int
    octets: int
    seconds: float
    #: The most octets of mails that began within any second.
    most: int

    def check(self) -> None:
        """Raises AssertionError where one began before the time was over that those before it take."""
        each = self.octets / self.mails
        assert self.most < 1.5 * each, self
        assert self.seconds >= 0.95 * (self.mails - 1) * each / OCTETS_A_SECOND, self


class _WithFewerOctets(Delivery):
    """The delivery worker, with OCTETS_A_SECOND for an account."""

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-c", _WITH_FEWER_OCTETS]


def kill_paced(directory: Path, kills: int, *, seed: int = 1, seconds: float = 600.0) -> Killed:
    """Kills one of the processes so many times, or all of them, while more mail waits than may leave."""
    chance = random.Random(seed)
    killed = Killed()
    with _stage(directory, Delivery, int(20 * RATE)) as (ses, url, delivery):
        began, before = time.monotonic(), ses.ledger()["recipients"]
        while killed.kills < kills and time.monotonic() - began < seconds:
            if _waiting(url) < 10 * RATE:
                add_alike(url, "newsletter", int(20 * RATE))
            time.sleep(chance.uniform(1.0, 2.0))  # until all of them are at work again
            workers = processes.serving(delivery.pid)
            victims = workers if chance.random() < 0.25 else chance.sample(workers, 1)
            processes.kill(victims)
            killed.kills += 1
            (killed.after_one if len(victims) == 1 else killed.after_all).append(_used(ses))
            wait_until(lambda: len(processes.serving(delivery.pid)) == PROCESSES, "all processes are back")
        killed.used = (ses.ledger()["recipients"] - before) / (time.monotonic() - began) / RATE
        killed.most = ses.ledger()["most"]
    return killed


def send_large(directory: Path, count: int) -> LargeMails:
    """Has so many large mails sent, by all processes at a time."""
    with _stage(directory, _WithFewerOctets, 1) as (ses, url, _):
        content = b64encode(bytes(LARGE_OCTETS * 3 // 4)).decode()
        for _ in range(count):
            add(url, attachments=[{"filename": "a.pdf", "content": content}], user_id="large")
        wait_until(lambda: _sent(url, "large") == count, "all large mails are sent", seconds=300.0)
        figures = ses.octets()
        return LargeMails(figures["calls"], figures["recipients"], figures["seconds"], figures["most"])


@contextmanager
def _stage(directory: Path, worker: type[Delivery], mails: int) -> Iterator[tuple[SwiftSes, str, Delivery]]:
    """Servers and processes that are at work on so many mails, with the double and the database's URL."""
    with (
        Valkey(directory / "valkey") as valkey,
        Postgres(directory / "postgres", durable=False) as postgres,
        SwiftSes(directory / "ses", 20) as ses,
    ):
        url = create_database(postgres.url(), "paced")
        apply_schema(url)
        ses.has(rate=RATE)
        settings: dict[str, str | None] = {
            **ses.client_environment,
            "DATABASE_URL": url,
            "REDIS_URL": valkey.url,
            "SMTP_RELAY_DELIVERY_PROCESSES": str(PROCESSES),
            "SMTP_RELAY_SPOOL_DIR": str(directory),
        }
        add_alike(url, "newsletter", mails)
        with worker(directory / "delivery", settings) as delivery:
            wait_until(lambda: ses.ledger()["recipients"] >= min(mails, RATE), "mail leaves")
            yield ses, url, delivery


def _used(ses: SwiftSes) -> float:
    before, began = ses.ledger()["recipients"], time.monotonic()
    time.sleep(AFTER_SECONDS)
    return (ses.ledger()["recipients"] - before) / (time.monotonic() - began) / RATE


def _waiting(url: str) -> int:
    ((count,),) = query(url, "SELECT count(*)::int FROM emails WHERE status = 'queued'")
    return int(str(count))


def _sent(url: str, user_id: str) -> int:
    ((count,),) = query(url, "SELECT count(*)::int FROM emails WHERE status = 'sent' AND user_id = %s", (user_id,))
    return int(str(count))
