"""`python -m scripts.benchmark.pace`: how well delivery keeps to an account's rate, and how much of it is used.

First simulated, an hour of three processes with a clock of their own and a real Valkey: calls are refused at random,
and mails have one recipient, or several. Then, with --seconds, real delivery processes against a double of SES that
answers after 20 ms and needs little of the processors (scripts/benchmark/swiftses.py); what each party has of them is
given, of one of them on average: where none is idle the machine is the bound, and no rate.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.pace instead.")

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import gevent

from relay.core.allowance import Grant
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import SharedAllowance
from scripts.benchmark.delivery_memory import add_alike
from scripts.benchmark.machine import Usage
from scripts.benchmark.pace_simulation import Simulation
from scripts.benchmark.swiftses import SwiftSes
from scripts.database import apply_schema, create_database
from scripts.services import Delivery, Postgres, Valkey
from scripts.services.ses_ledger import TOLERANCE, Ledger

RATES: Final = (14.0, 500.0)
PROCESSES: Final = 3
#: The part of the rate that has to be used while mail waits.
USED: Final = 0.95
#: The part of the calls that is refused at random.
CHANCE: Final = 0.002
#: What an answer of the double takes.
ANSWER_MILLISECONDS: Final = 20
#: Seconds from the start of the processes until all of them are at work, twice.
_BEFORE_SECONDS: Final = 10.0
SEVERAL: Final = (1, 1, 1, 1, 1, 1, 1, 2, 3, 5)


class Timed:
    """An allowance in Redis, by the simulation's clock."""

    def __init__(self, link: RedisLink, account: str) -> None:
        self._shared = SharedAllowance(link, account, fallback=1.0, shares=PROCESSES)

    def reserve(self, now: float, weights: Sequence[int], *, passed: int, throttled: int) -> Grant:
        """See Allowed."""
        return self._shared.reserve(weights, passed=passed, throttled=throttled, now=now)

    def learn(self, rate: float, left: int, off: str) -> None:
        """See Allowed."""
        self._shared.learn(rate, left, off)


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goals, 1 beyond them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.pace", description=__doc__)
    parser.add_argument("--simulated", type=float, default=3600.0, help="seconds of the simulation's clock; 0: none")
    parser.add_argument("--seconds", type=float, default=0.0, help="of real time, for each rate; 0: none")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of accounts, recipients a second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    met = True
    columns = ("account", "mails", "for", "most in a second", "of its rate", "used", "throttled", "requests a mail")
    print(f"| {' | '.join((*columns, 'of Redis', 'CPU'))} |\n|{'---|' * 10}")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        with Valkey(Path(folder) / "valkey") as valkey:
            if options.simulated:
                for rate in options.rates:
                    met &= _simulated(valkey, rate, "of one recipient", lambda _: 1, options)
                several = options.rates[-1]
                met &= _simulated(valkey, several, "of several", lambda chance: chance.choice(SEVERAL), options)
            if options.seconds:
                for rate in options.rates:
                    met &= _real(Path(folder), rate, options.seconds)
    return 0 if met else 1


def _simulated(
    valkey: Valkey, rate: float, mails: str, weight: Callable[[random.Random], int], options: argparse.Namespace
) -> bool:
    link = RedisLink(valkey.url, verify_tls=True, timeout=5.0, pause=1.0)
    ledger = Ledger(rate=rate, chance=CHANCE, seed=options.seed)
    allowances = [Timed(link, f"{mails}:{rate:g}") for _ in range(PROCESSES)]
    simulation = Simulation(allowances, ledger, weight=weight, seed=options.seed)
    simulation.run(10.0)  # what the beginning is like is another matter
    requests, calls = simulation.requests, ledger.calls
    link.call("CONFIG", "RESETSTAT")
    used = simulation.run(options.simulated)
    requests, calls = simulation.requests - requests, ledger.calls - calls
    milliseconds = _script_seconds(link) / requests * 1000
    link.close()
    cells = (f"{requests / calls:.2f}", f"{milliseconds:.2f} ms a request", "")
    return _print(f"{rate:g}/s, simulated", mails, options.simulated, ledger, used, cells)


def _script_seconds(link: RedisLink) -> float:
    """What Redis has spent on scripts."""
    lines = bytes(link.call("INFO", "commandstats")).decode().splitlines()
    figures = next(line for line in lines if line.startswith("cmdstat_evalsha:"))
    return int(figures.partition("usec=")[2].partition(",")[0]) / 1e6


def _real(directory: Path, rate: float, seconds: float) -> bool:
    name = f"rate_{rate:g}"
    with (
        # One that knows nothing of the account before: its rate is asked for once a minute.
        Valkey(directory / f"valkey-{name}") as valkey,
        Postgres(directory / f"postgres-{name}", durable=False) as postgres,
        SwiftSes(directory / f"ses-{name}", ANSWER_MILLISECONDS) as ses,
    ):
        url = create_database(postgres.url(), name)
        apply_schema(url)
        ses.has(rate=rate, chance=CHANCE)
        # More than leave until the end.
        add_alike(url, "user", int(rate * (seconds + _BEFORE_SECONDS) * 1.2))
        settings: dict[str, str | None] = {
            **ses.client_environment,
            "DATABASE_URL": url,
            "REDIS_URL": valkey.url,
            "SMTP_RELAY_DELIVERY_PROCESSES": str(PROCESSES),
        }
        with Delivery(directory / f"delivery-{name}", settings) as delivery:
            gevent.sleep(_BEFORE_SECONDS / 2)
            usage = Usage(workers=delivery, double=ses, Postgres=postgres, Valkey=valkey)
            before = ses.ledger()["recipients"]
            began = time.monotonic()
            gevent.sleep(seconds)
            figures = ses.ledger()
            used = (figures["recipients"] - before) / (rate * (time.monotonic() - began))
            busy = usage.text()
    ledger = Ledger(rate=rate)
    ledger.most, ledger.calls = figures["most"], figures["calls"]
    ledger.too_fast, ledger.at_random = figures["too_fast"], figures["at_random"]
    return _print(f"{rate:g}/s, {PROCESSES} processes", "of one recipient", seconds, ledger, used, ("", "", busy))


def _print(account: str, mails: str, seconds: float, ledger: Ledger, used: float, more: tuple[str, str, str]) -> bool:
    throttled = f"{ledger.at_random} at random, {ledger.too_fast} for the rate"
    cells = (
        account,
        mails,
        f"{seconds:g} s",
        f"{ledger.most}",
        f"{ledger.most / ledger.rate:.1%}",
        f"{used:.1%}",
        throttled,
        *more,
    )
    print(f"| {' | '.join(cells)} |", flush=True)
    return ledger.most <= ledger.rate * TOLERANCE and used >= USED


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
