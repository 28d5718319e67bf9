"""`./scripts/mutants`: breaks the relay in small ways, one at a time, and says which of them no test notices."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/mutants instead.")

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LIST: Final = ROOT / "tests" / "mutants.toml"
#: Seconds that the tests of one breakage may take; what hangs has been noticed.
_PATIENCE: Final = 600
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One breakage: `old` stands once in `file`, and becomes `new`. One of `tests` must fail then."""

    file: str
    old: str
    new: str
    #: What is no longer so.
    promise: str
    #: Paths of tests, or `path::test`.
    tests: tuple[str, ...]
    #: Whether CI runs it.
    quick: bool = False

    def applied_to(self, text: str) -> str:
        """The broken text of the file."""
        return text.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """All of the list."""
    with LIST.open("rb") as file:
        entries = tomllib.load(file)["mutant"]
    return [Mutant(**(entry | {"tests": tuple(entry["tests"])})) for entry in entries]


def stale(mutant: Mutant) -> bool:
    """Whether the code has changed since, so that there is nothing to break, or more than one place."""
    path = ROOT / mutant.file
    return not path.is_file() or path.read_text("utf-8").count(mutant.old) != 1


class Copies:
    """Copies of the checkout, one for each run at a time."""

    def __init__(self, folder: Path, count: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        names = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
        for number in range(count):
            copy = folder / str(number)
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
            (copy / ".venv").symlink_to(ROOT / ".venv")
            self._free.put(copy)

    def run(self, tests: Sequence[str], mutant: Mutant | None = None) -> tuple[int | None, float]:
        """Runs tests in a copy, with or without a breakage: pytest's exit status, None where they hang, and seconds."""
        copy = self._free.get()
        began = time.monotonic()
        path = copy / (mutant.file if mutant else "pyproject.toml")
        sound = path.read_text("utf-8")
        try:
            if mutant is not None:
                path.write_text(mutant.applied_to(sound), "utf-8")
            return _pytest(copy, tests), time.monotonic() - began
        finally:
            path.write_text(sound, "utf-8")
            self._free.put(copy)


def _pytest(copy: Path, tests: Sequence[str]) -> int | None:
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    # A separate group: servers that the tests started must not outlive a run that was given up.
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return None


def main(arguments: list[str]) -> int:
    """0: every breakage was noticed; 1: some survived, or the list or the tests are not in order."""
    parser = argparse.ArgumentParser(
        prog="./scripts/mutants",
        description="Breaks the relay in small ways, runs the tests that belong to each, and names those that survive.",
    )
    parser.add_argument("--quick", action="store_true", help="only the dozen that CI runs")
    parser.add_argument("--file", action="append", default=[], help="only those of files whose name holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    options = parser.parse_args(arguments)
    chosen = [
        mutant
        for mutant in mutants()
        if (mutant.quick or not options.quick)
        and (not options.file or any(part in mutant.file for part in options.file))
    ]
    wrong = [f"stale: {mutant.file}: {mutant.old!r} is not there once" for mutant in chosen if stale(mutant)]
    chosen = [mutant for mutant in chosen if not stale(mutant)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        copies = Copies(Path(folder), options.jobs)
        sets = list(dict.fromkeys(mutant.tests for mutant in chosen))
        sound = dict(zip(sets, pool.map(copies.run, sets), strict=True))
        wrong += [f"fails unbroken: {' '.join(tests)}" for tests, (status, _) in sound.items() if status != _PASSED]
        usable = [mutant for mutant in chosen if sound[mutant.tests][0] == _PASSED]
        results = pool.map(lambda mutant: copies.run(mutant.tests, mutant), usable)
        for mutant, (status, seconds) in zip(usable, results, strict=True):
            verdict = {_PASSED: "SURVIVED", _FAILED: "noticed", None: "noticed (hangs)"}.get(status, "NO TEST RAN")
            print(f"{verdict:16} {seconds:6.1f} s  {mutant.file}: {mutant.promise}", flush=True)
            if not verdict.islower():
                wrong.append(f"{verdict}: {mutant.file}: {mutant.promise}: {mutant.old!r} -> {mutant.new!r}")
    print(f"\n{len(usable)} breakages, {len(wrong)} not in order")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
