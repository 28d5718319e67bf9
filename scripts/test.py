"""`./scripts/test`: what must hold before a change goes in, all of it, in one command."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/test instead.")

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USAGE = """\
usage: ./scripts/test [PYTEST ARGUMENT...]

Checks style (ruff), types (mypy) and runs the test suite (pytest) against real Postgres,
Valkey and SQS servers, which it starts and stops. Arguments go to pytest:

  ./scripts/test                      everything
  ./scripts/test tests/unit -x        one folder, up to the first failure
  ./scripts/test -k smuggling -n 0    by name, in one process
"""
#: More processes than this only make more servers to start.
MOST_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is checked."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended."""

    name: str
    exit_status: int
    seconds: float


def main(arguments: list[str]) -> int:
    """The exit status: 0 all is well, 1 something failed, 130 interrupted."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    os.chdir(ROOT)  # where pyproject.toml is, which tells all of them what to do
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # One more than there are cores: many tests wait for a time-out or for a server.
    workers = min(cores + 1, MOST_WORKERS)
    steps = (
        Step("ruff check", ("ruff", "check", ".")),
        Step("ruff format", ("ruff", "format", "--check", ".")),
        Step("mypy", ("mypy",)),
        # A file's tests stay together, since they share what they set up.
        Step("pytest", ("pytest", *(("-n", str(workers), "--dist", "loadfile") if workers > 1 else ()), *arguments)),
    )
    outcomes = [_run(step) for step in steps]
    print("\nSummary")
    for outcome in outcomes:
        verdict = "ok" if outcome.exit_status == 0 else f"FAILED (exit status {outcome.exit_status})"
        print(f"  {outcome.name:<12} {outcome.seconds:6.1f} s  {verdict}")
    return 0 if all(outcome.exit_status == 0 for outcome in outcomes) else 1


def _run(step: Step) -> Outcome:
    print(f"\n── {step.name}", flush=True)
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-m", *step.arguments], check=False)
    return Outcome(step.name, ended.returncode, time.monotonic() - began)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
