"""kill -9 and a new start for the servers behind the relay, under load."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.ledger import Books
from tests.faults.load import Load
from tests.faults.stage import Stage, wait_until


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    books: Books
    kills: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def restart_servers(
    stage: Stage, rounds: int, *, queue_away: float, clients: int = 8, seconds: float = 600.0, pause: float = 0.02
) -> Outcome:
    """Postgres and Valkey killed so many times each, then the queue away for `queue_away` seconds."""
    chance = random.Random(rounds)
    began = time.monotonic()
    outcome = Outcome(Books())
    with Load(stage.relay.port, stage.key.token, clients=clients, pause=pause) as load:
        for _ in range(rounds):
            if time.monotonic() - began > seconds:
                break
            for server in (stage.postgres, stage.valkey):
                _wait_for_more(load, chance.randint(3, 30))
                server.kill()
                outcome.kills[server.name] += 1
                time.sleep(chance.uniform(0.0, 0.5))
                server.start()
        _wait_for_more(load, 10)
        stage.kill_queue()
        outcome.kills[stage.sqs.name] += 1
        until = time.monotonic() + queue_away
        _wait_for_more(load, 10)
        time.sleep(max(0.0, until - time.monotonic()))
        stage.start_queue()
        _wait_for_more(load, 10)
    outcome.books = stage.audit(load.mails, remind=True)
    outcome.fates = load.fates()
    outcome.seconds = time.monotonic() - began
    return outcome


def _wait_for_more(load: Load, mails: int) -> None:
    wanted = load.accepted() + mails
    wait_until(lambda: load.accepted() >= wanted, "mail flows", seconds=60)
