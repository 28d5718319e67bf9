"""What it costs to parse a message, beside an earlier commit: CPU time, on a machine that has other things to do.

    python -m scripts.benchmark.parsing --before COMMIT [--rounds 400]

Two processes, one with each tree, parse the same messages in turns, some thousandths of a second at a time, and are
asked for the CPU time of each turn. What a turn costs more than the other process's turn before it is the neighbours'
doing as often as the code's, so the fastest tenth of many turns counts, and beside it the median.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.parsing instead.")

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Final, Self

from scripts.benchmark.messages import template

ROOT: Final = Path(__file__).resolve().parent.parent.parent
#: Size → messages that differ, as in life, and how many are parsed in one turn.
_SIZES: Final = {"1.2 KB": (200, 200), "25 KB": (40, 40), "230 KB": (15, 15)}
_PARSER: Final = """
import gc, sys, time
sys.path.insert(0, sys.argv[1])
from relay.mail import parse
messages = {}
for line in sys.stdin:
    command, path, *numbers = line.rstrip("\\n").split("\\t")
    if command == "load":
        octets, sizes = open(path, "rb").read(), list(map(int, numbers))
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        messages[path] = [octets[start : start + size] for start, size in zip(starts, sizes)]
        print("loaded", flush=True)
        continue
    gc.collect()
    chosen = messages[path]
    began = time.process_time()
    for number in range(int(numbers[0])):
        parse(chosen[number % len(chosen)])
    print((time.process_time() - began) / int(numbers[0]), flush=True)
"""


class Parser:
    """A process that parses with the code of one tree."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PARSER, str(tree)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait(timeout=30)

    def load(self, path: Path, sizes: list[int]) -> None:
        """Reads the messages that stand in a file one behind the other, with these sizes in octets."""
        self._ask("load", str(path), *map(str, sizes))

    def seconds(self, path: Path, count: int) -> float:
        """CPU time of parsing one message, of so many messages of that file."""
        return float(self._ask("parse", str(path), str(count)))

    def _ask(self, *words: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a parser ended early")
        return answer


def compare(before: Path, after: Path, folder: Path, rounds: int) -> None:
    """Prints one line for each size."""
    print(f"{'':8} {'tenth: before':>14} {'after':>10} {'':7} {'median: before':>15} {'after':>10}")
    with Parser(before) as old, Parser(after) as new:
        for size, (different, count) in _SIZES.items():
            messages = [template(size).raw(f"reader{n}@example.com", f"{n:08x}.bench") for n in range(different)]
            path = folder / size.replace(" ", "")
            path.write_bytes(b"".join(messages))
            taken: dict[Parser, list[float]] = {old: [], new: []}
            for parser in taken:
                parser.load(path, list(map(len, messages)))
                parser.seconds(path, count)
            for number in range(rounds):
                for parser in (old, new) if number % 2 else (new, old):
                    taken[parser].append(parser.seconds(path, count))
            least, middle = ([statistic(taken[each]) * 1e6 for each in (old, new)] for statistic in (_tenth, median))
            print(
                f"{size:8} {least[0]:11.1f} µs {least[1]:7.1f} µs {least[1] / least[0] - 1:+7.1%}"
                f"{middle[0]:12.1f} µs {middle[1]:7.1f} µs {middle[1] / middle[0] - 1:+7.1%}",
                flush=True,
            )


def _tenth(seconds: list[float]) -> float:
    return quantiles(seconds, n=10)[0]


def main() -> None:
    """Takes the arguments and compares."""
    arguments = argparse.ArgumentParser(prog="python -m scripts.benchmark.parsing", description=__doc__)
    arguments.add_argument("--before", metavar="COMMIT", required=True, help="the commit to compare with")
    arguments.add_argument("--rounds", type=int, default=400, help="turns of each process and size (default: 400)")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        before.mkdir()
        archive = subprocess.run(["git", "archive", chosen.before], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(before)], input=archive, check=True)
        compare(before, ROOT, Path(folder), chosen.rounds)


if __name__ == "__main__":
    main()
