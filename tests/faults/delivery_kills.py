"""Delivery processes and masters are killed at random moments under load, and their servers fail."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.services import processes
from scripts.services.ses_request import Answer
from tests.faults.delivery_stage import DeliveryStage, Ledger

#: Who is killed, and how often compared with the others.
VICTIMS = {"a process": 6, "all processes": 2, "the master": 1, "everything": 2}
#: How the provider answers, a call each: late, twice, with half an answer, not at all with and without the mail, no.
ANSWERS: tuple[Answer, ...] = (
    {"seconds": 0.5},
    {
        "raw": 'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"MessageId": "1"}'
        'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"MessageId": "2"}'
    },
    {"raw": "HTTP/1.1 200 OK\r\nContent-Le"},
    {"raw": 'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"Mess'},
    {"lost": True},
    {"silent": True},
    {"status": 503, "code": "ServiceUnavailable", "message": ""},
    {"status": 504, "code": "", "message": ""},
    {"status": 429, "code": "TooManyRequestsException", "message": "slower"},
)
#: Calls from one kill to the next that are answered late.
_ANSWERS = 60
#: Seconds after which the provider takes a mail and answers: a worker gives a call up after 60 (relay/aws/ses.py).
TOO_LATE_SECONDS = 65.0
#: Mails of which that is so, at the end of a run with faults.
TOO_LATE = 5


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    ledger: Ledger
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    #: Mails that were `processing` at the end, a minute after the last fault: their states were lost.
    needed_lease: int = 0
    seconds: float = 0.0


def kill_at_random(
    stage: DeliveryStage, kills: int, *, seed: int = 1, faults: bool, seconds: float = 600.0, patience: float = 60.0
) -> Outcome:
    """Kills so many times, but not after `seconds`, while mail leaves; then lets all of it come to its end.

    `faults`: servers fail as well, answers are late, lost, half and double, and processes stand still; without them
    each kill comes while the provider is being called. `patience`: seconds for which claims may come back by themselves
    at the end.
    """
    chance = random.Random(seed)
    began = time.monotonic()
    outcome = Outcome(Ledger())
    while outcome.kills.total() < kills and time.monotonic() - began < seconds:
        if stage.count("queued", "processing") < 100:
            stage.add(40)
        stage.ses.answer(*_answers(chance, faults=faults))
        if faults and chance.random() < 0.3:
            outcome.faults[_fault(stage, chance)] += 1
        if not faults:
            _wait_for_calls(stage)
        time.sleep(chance.uniform(0.1, 1.0))
        victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        if _kill(stage, chance, victim):
            outcome.kills[victim] += 1
        stage.revive()
    if faults:
        outcome.faults["answers later than the limit"] += _answer_too_late(stage)
    stage.ses.answer()
    until = time.monotonic() + patience
    while stage.count("processing") and time.monotonic() < until:
        stage.revive()
        time.sleep(0.5)
    outcome.needed_lease = stage.end_leases()
    stage.settle(300.0)
    outcome.ledger = stage.ledger()
    outcome.seconds = time.monotonic() - began
    return outcome


def _answers(chance: random.Random, *, faults: bool) -> list[Answer]:
    late: list[Answer] = [{"seconds": chance.uniform(0.0, 0.1 if faults else 3.0)} for _ in range(_ANSWERS)]
    if faults:
        for place in chance.sample(range(_ANSWERS), 2):
            late[place] = chance.choice(ANSWERS)
    return late


def _wait_for_calls(stage: DeliveryStage) -> None:
    """Returns when mails are on their way to the provider; some seconds later at the latest."""
    until = time.monotonic() + 5.0
    while stage.ses.unused_answers() == _ANSWERS and time.monotonic() < until:
        time.sleep(0.02)


def _answer_too_late(stage: DeliveryStage) -> int:
    """Has some calls answered after the worker has given them up, while other mails leave; how many.

    Nothing is killed meanwhile: a process that ends gives its calls up too soon.
    """
    began = time.monotonic()
    stage.add(TOO_LATE + 20)
    late: Answer = {"seconds": TOO_LATE_SECONDS}
    stage.ses.answer(*[late] * TOO_LATE)
    while time.monotonic() - began < TOO_LATE_SECONDS + 10.0:
        stage.revive()
        time.sleep(0.5)
    return TOO_LATE


def _kill(stage: DeliveryStage, chance: random.Random, victim: str) -> bool:
    """Whether there was a process to kill."""
    service = chance.choice(stage.services)
    if victim == "everything":
        stage.kill_all(service)
        return True
    if victim == "the master":
        if service.running:
            stage.kill_master(service)
        return True
    workers = stage.workers(service)
    targets = workers if victim == "all processes" else chance.sample(workers, min(1, len(workers)))
    processes.kill(targets)
    return bool(targets)


def _fault(stage: DeliveryStage, chance: random.Random) -> str:
    """Lets one server, or one process, be in trouble for a while; its name."""
    name = chance.choice([*stage.proxies, "a process stands still"])
    if name not in stage.proxies:
        workers = stage.workers(chance.choice(stage.services))
        stopped = chance.sample(workers, min(1, len(workers)))
        processes.send(stopped, signal.SIGSTOP)
        time.sleep(chance.choice([2.0, 5.0, 30.0]))
        processes.send(stopped, signal.SIGCONT)
        return name
    proxy = stage.proxies[name]
    kinds: dict[str, Callable[[], None]] = {"down": proxy.refuse, "hanging": proxy.stall, "reset": proxy.reset_all}
    kind = chance.choice(list(kinds))
    kinds[kind]()
    time.sleep(chance.uniform(0.5, 4.0))
    proxy.heal()
    return f"{name} {kind}"
