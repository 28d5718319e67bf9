"""How long the mail of others takes beside a user whose mail is in trouble, and without, from the dot to 250."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from scripts.database import create_api_key, execute, query
from tests.faults.load import Conversation, Fate, Lost, make_mail
from tests.faults.stage import ACCOUNT, Stage
from tests.support.user_troubles import SLOW

#: Other users, each with a connection, and seconds between two mails of one of them.
OTHERS: Final = 6
_PAUSE: Final = 0.05
#: Connections of the user in trouble, and idempotency keys that its mails have.
_CULPRITS: Final = 4
_KEYS: Final = 40
#: The numbers of the others' mails begin here.
_FIRST: Final = 1_000_000


@dataclass(slots=True)
class Times:
    """Of the others' mails."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0

    @property
    def median(self) -> float:
        """Half of them took no longer."""
        return statistics.median(self.seconds)

    @property
    def ninety_ninth(self) -> float:
        """Of a hundred, 99 took no longer."""
        return statistics.quantiles(self.seconds, n=100)[98]

    @property
    def slowest(self) -> float:
        """The one that took longest."""
        return max(self.seconds)


def measure(stage: Stage, trouble: Any, seconds: float) -> tuple[Times, Times]:
    """Times without the trouble, and with it, for so many seconds each. `trouble`: of `tests.support.user_troubles`."""
    numbers = itertools.count(_FIRST)
    keys = [create_api_key(stage.database_url, user_id=f"other-{number}").token for number in range(OTHERS)]
    culprit = create_api_key(stage.database_url, user_id=SLOW).token
    _send(stage, keys, numbers, 2.0)  # what is done once is done
    without = _send(stage, keys, numbers, seconds)
    with trouble(stage.database_url, lambda statement, *rest: _run(stage, statement, rest)), _culprits(stage, culprit):
        # Also on what the trouble has made.
        execute(stage.database_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ACCOUNT}")
        time.sleep(1.0)
        beside = _send(stage, keys, numbers, seconds)
    return without, beside


def _run(stage: Stage, statement: str, parameters: tuple[object, ...]) -> None:
    if statement.startswith("SELECT"):
        query(stage.database_url, statement, parameters)
    else:
        execute(stage.database_url, statement, parameters)


def _send(stage: Stage, tokens: list[str], numbers: Iterator[int], seconds: float) -> Times:
    times = Times()
    until = time.monotonic() + seconds

    def send(token: str) -> None:
        with contextlib.closing(stage.talk(token=token)) as client:
            while time.monotonic() < until:
                attempt = client.deliver(make_mail(next(numbers)))
                times.seconds.append(attempt.seconds)
                times.refused += attempt.fate is not Fate.ACCEPTED
                time.sleep(_PAUSE)

    _together([threading.Thread(target=send, args=(token,)) for token in tokens])
    return times


@contextlib.contextmanager
def _culprits(stage: Stage, token: str) -> Iterator[None]:
    """The user in trouble sends mails with keys, again and again, while the block runs."""
    ended = threading.Event()
    numbers = itertools.cycle(range(_KEYS))

    def send() -> None:
        while not ended.is_set():
            with contextlib.suppress(Lost), contextlib.closing(Conversation(stage.relay.port, token)) as client:
                while not ended.is_set():
                    client.deliver(make_mail(next(numbers), keyed=True, message_id=False))

    threads = [threading.Thread(target=send, daemon=True) for _ in range(_CULPRITS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


def _together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
