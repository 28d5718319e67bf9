"""kill -9 at random moments under load."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from scripts.services import processes
from tests.faults.ledger import Books
from tests.faults.load import Load
from tests.faults.stage import Stage

#: Who is killed, and how often compared with the others.
VICTIMS = {"a worker": 5, "all workers": 2, "the process for large messages": 1, "the master": 1, "everything": 3}


@dataclass(slots=True)
class Outcome:
    """What a run of kills came to."""

    books: Books
    kills: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    not_greeted: Counter[str] = field(default_factory=Counter)
    #: How often the service ended by itself, as it does when four workers in a row die as soon as they start.
    given_up: int = 0
    seconds: float = 0.0


def kill_at_random(
    stage: Stage,
    kills: int,
    *,
    seed: int = 1,
    clients: int = 8,
    seconds: float = 600.0,
    pause: float = 0.02,
    between: int = 20,
) -> Outcome:
    """Kills so many times, but not after `seconds`; then lets the clients finish, and audits.

    Between two kills at least one message is accepted, and up to `between` are waited for.
    """
    chance = random.Random(seed)
    began = time.monotonic()
    outcome = Outcome(Books())
    with Load(stage.relay.port, stage.key.token, clients=clients, pause=pause) as load:
        outcome.given_up += _wait_for_more(stage, load, 5)
        while outcome.kills.total() < kills and time.monotonic() - began < seconds:
            time.sleep(chance.uniform(0.0, 0.5))
            (victim,) = chance.choices(list(VICTIMS), list(VICTIMS.values()))
            if _kill(stage, victim):
                outcome.kills[victim] += 1
                # A service that never gets up has nothing to lose.
                outcome.given_up += _wait_for_more(stage, load, chance.randint(1, between))
    outcome.books = stage.audit(load.mails)
    outcome.fates = load.fates()
    outcome.not_greeted = load.not_greeted
    outcome.seconds = time.monotonic() - began
    return outcome


def _kill(stage: Stage, victim: str) -> bool:
    """Whether there was a process to kill."""
    if victim == "everything":
        stage.kill_family()
        return True
    if victim == "the master":
        stage.kill_master()
        return True
    workers = stage.workers()
    if victim == "a worker":
        targets = random.sample(workers, min(1, len(workers)))
    elif victim == "all workers":
        targets = workers
    else:
        targets = [child for worker in workers for child in processes.children(worker.pid)]
    processes.kill(targets)
    return bool(targets)


def _wait_for_more(stage: Stage, load: Load, mails: int) -> int:
    """Waits until so many more are accepted, and starts the service when it ended, as every platform does.

    How often that was needed.
    """
    wanted = load.accepted() + mails
    until = time.monotonic() + 60
    starts = 0
    while load.accepted() < wanted:
        assert time.monotonic() < until, "nothing is accepted any more"
        if not stage.relay.running:
            stage.relay.stop()
            stage.relay.start()
            starts += 1
        time.sleep(0.02)
    return starts
