"""`./scripts/bench`: measures this checkout and writes docs/benchmarks.md."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/bench instead.")

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from scripts.benchmark import delivery, footprint, latency, speed, traffic
from scripts.benchmark.plan import FULL, QUICK, Plan
from scripts.benchmark.report import Table, document, say
from scripts.benchmark.subjects import ROOT, Stage, Yardstick
from scripts.services import ServiceFailed

STATE: Final = ROOT / ".dev"
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"
#: The mails of a soak, unless told otherwise.
SOAK: Final = 200_000

SCENARIOS: Final[dict[str, Callable[[Stage, Plan], list[Table]]]] = {
    "cost": speed.cost,
    "throughput": speed.throughput,
    "publishing": speed.publishing,
    "traffic": traffic.traffic,
    "alone": latency.alone,
    "fairness": latency.fairness,
    "memory": footprint.memory,
    "delivery": delivery.delivery,
    "soak": footprint.soak,
}


def main(arguments: list[str]) -> int:
    """The exit status: 0 measured, whatever came of it; 1 something could not be measured."""
    options = _options(arguments)
    plan = QUICK if options.quick else FULL
    if options.soak is not None:
        plan = replace(plan, soak=options.soak)
    names = options.only or [name for name in SCENARIOS if name != "soak" or plan.soak]
    if "soak" in names and not plan.soak:
        plan = replace(plan, soak=SOAK)
    STATE.mkdir(exist_ok=True)
    with (STATE / "bench.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if options.before:
                return _compare(options.before, replace(plan, rounds=options.pairs), _output(options))
            return _measure(names, plan, _output(options))
        except BlockingIOError:
            print("./scripts/bench is already running in this checkout.", file=sys.stderr)
        except ServiceFailed as error:
            print(error, file=sys.stderr)
    return 1


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench",
        description="Measures what a message costs the relay, beside the same job on Node, and how much memory it all"
        " needs. Best on a machine that does nothing else. Takes about 20 minutes; writes docs/benchmarks.md.",
    )
    parser.add_argument("--quick", action="store_true", help="under 3 minutes; writes .dev/benchmarks.md instead")
    parser.add_argument(
        "--only", nargs="+", choices=SCENARIOS, metavar="SCENARIO", help=f"just these: {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--before", metavar="COMMIT", help="the cost alone, in turns with the relay of another commit")
    parser.add_argument("--pairs", type=int, default=9, help="how many turns with --before (9)")
    parser.add_argument("--soak", nargs="?", type=int, const=SOAK, help=f"with a soak of so many mails ({SOAK:,})")
    parser.add_argument("--output", type=Path, help="where to write the tables")
    return parser.parse_args(arguments)


def _output(options: argparse.Namespace) -> Path:
    """A part of the figures must not take the place of all."""
    if options.output is not None:
        return Path(options.output)
    return STATE / "benchmarks.md" if options.quick or options.only or options.before else DOCUMENT


def _measure(names: list[str], plan: Plan, output: Path) -> int:
    began = time.monotonic()
    if not Yardstick.available():
        say("There is no Node here: the relay is measured alone.")
    with Stage(STATE / "bench") as stage:
        tables = []
        for name in names:
            say(f"{name} …")
            tables += SCENARIOS[name](stage, plan)
        text = document(tables, stage.database_url, Yardstick.source, plan.name)
    return _written(text, output, began)


def _compare(commit: str, plan: Plan, output: Path) -> int:
    """See `speed.compared`. The other commit's files are laid out beside the bench's own."""
    began = time.monotonic()
    checkout = STATE / "before"
    shutil.rmtree(checkout, ignore_errors=True)
    checkout.mkdir()
    archive = subprocess.run(["git", "archive", commit, "relay", "config"], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(checkout)], input=archive.stdout, check=True)
    with Stage(STATE / "bench") as stage:
        tables = speed.compared(stage, plan, checkout, commit)
        text = document(tables, stage.database_url, Yardstick.source, plan.name)
    return _written(text, output, began)


def _written(text: str, output: Path, began: float) -> int:
    output.parent.mkdir(exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(text)
    say(f"{time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f}; written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
