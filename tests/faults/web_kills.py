"""Processes of web and worker are killed at random moments while events come back, and Postgres and Redis fail."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.services import processes
from tests.faults.web_stage import Ledger, WebStage

#: What is killed, and how often compared with the others.
VICTIMS = {"an HTTP process": 5, "all HTTP processes": 2, "the HTTP service": 1, "the worker": 4}
#: Mails that are made ready at a time.
_READY = 100
#: Seconds for which a client tries at most.
_PATIENCE = 300.0


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    ledger: Ledger
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class _Clients:
    """Threads that tell of mails and click their links, each mail once."""

    def __init__(self, stage: WebStage, count: int, pause: float) -> None:
        self._stage = stage
        self._pause = pause
        self._ready: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]

    def __enter__(self) -> _Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                email_id = self._next()
                self._stage.tell(email_id, patience=_PATIENCE)
                self._stage.click(email_id, patience=_PATIENCE)
                self._stop.wait(self._pause)
        except BaseException as error:  # noqa: BLE001 - a thread that ends is seen by the caller
            self.errors.append(error)

    def _next(self) -> str:
        with self._lock:
            if not self._ready:
                self._ready = self._stage.add(_READY)
            return self._ready.pop()


def kill_at_random(stage: WebStage, seconds: float, *, seed: int = 1, clients: int = 6, pause: float = 0.1) -> Outcome:
    """Kills and breaks for so long while events come back; then lets all of it come to its end."""
    chance = random.Random(seed)
    began = time.monotonic()
    outcome = Outcome(Ledger())
    with _Clients(stage, clients, pause) as running:
        while time.monotonic() - began < seconds and not running.errors:
            time.sleep(chance.uniform(0.5, 2.5))
            if chance.random() < 0.35:
                outcome.faults[_fault(stage, chance)] += 1
            victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            if _kill(stage, chance, victim):
                outcome.kills[victim] += 1
            stage.revive()
        stage.revive()
    assert not running.errors, running.errors
    stage.settle(400.0)
    outcome.ledger = stage.ledger()
    outcome.seconds = time.monotonic() - began
    return outcome


def _kill(stage: WebStage, chance: random.Random, victim: str) -> bool:
    """Whether there was a process to kill."""
    if victim == "the HTTP service":
        stage.web.kill()
        return True
    if victim == "the worker":
        stage.kill_worker()
        return True
    serving = stage.web_processes()
    targets = serving if victim == "all HTTP processes" else chance.sample(serving, min(1, len(serving)))
    processes.kill(targets)
    return bool(targets)


def _fault(stage: WebStage, chance: random.Random) -> str:
    """Lets Postgres, Redis or both be in trouble for a while, and kills in the middle of it; its name."""
    names = chance.choice([[stage.postgres.name], [stage.postgres.name], [stage.valkey.name], list(stage.proxies)])
    kind = chance.choice(["down", "hanging", "reset"])
    for name in names:
        proxy = stage.proxies[name]
        kinds: dict[str, Callable[[], None]] = {"down": proxy.refuse, "hanging": proxy.stall, "reset": proxy.reset_all}
        kinds[kind]()
    time.sleep(chance.uniform(0.5, 3.0))
    if len(names) == 1 and chance.random() < 0.5:  # with both away, what is in memory is all there is
        _kill(stage, chance, "an HTTP process")
    time.sleep(chance.uniform(0.5, 3.0))
    for name in names:
        stage.proxies[name].heal()
    return f"{' and '.join(names)} {kind}"
