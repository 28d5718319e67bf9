"""`./scripts/fuzz`: runs the targets of tests/fuzz under atheris, and says how often, how long and what was found."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/fuzz instead.")

import argparse
import dataclasses
import filecmp
import hashlib
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tests.fuzz import catalogue
from tests.fuzz.catalogue import NAMES, Target

ROOT: Final = Path(__file__).resolve().parent.parent
REQUIREMENTS: Final = ROOT / "requirements" / "fuzz.txt"
STATE: Final = ROOT / ".dev" / "fuzz"
PACKAGES: Final = STATE / f"packages-{sys.version_info.major}.{sys.version_info.minor}"
#: What one input may take: seconds, and megabytes of the process. Instrumented code is several times slower.
_MOST_SECONDS: Final = 20
_MOST_MEGABYTES: Final = 1024
#: Octets; a longer input is cut before it is kept, for the repository's sake.
_LONGEST_KEPT: Final = 300
_FINDINGS: Final = ("crash-*", "timeout-*", "oom-*", "leak-*")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of fuzzing one target."""

    name: str
    runs: int
    #: Of CPU.
    seconds: float
    #: Points of the code that were reached, and those by how often and after what.
    coverage: int
    features: int
    findings: Sequence[Path]
    exit_status: int


def main(arguments: list[str]) -> int:
    """The exit status: 0 nothing was found, 1 something was, 2 it could not be run."""
    options = _options(arguments)
    try:
        _install()
    except subprocess.CalledProcessError as error:
        print(f"Could not install {REQUIREMENTS.relative_to(ROOT)}: {error}", file=sys.stderr)
        print("There are wheels for Linux on x86-64 alone.", file=sys.stderr)
        return 2
    outcomes = []
    for name in options.target or NAMES:
        print(f"{name} …", flush=True)
        outcome = _fuzz(catalogue.load(name), options)
        print(_line(outcome), flush=True)
        if options.keep and not outcome.exit_status:
            _keep(catalogue.load(name))
        outcomes.append(outcome)
    print("\n| target | executions | CPU s | points reached | features | findings |\n|---|---|---|---|---|---|")
    for outcome in outcomes:
        print(
            f"| {outcome.name} | {outcome.runs:,} | {outcome.seconds:,.0f} | {outcome.coverage} | {outcome.features}"
            f" | {len(outcome.findings)} |"
        )
    print(f"| all | {sum(each.runs for each in outcomes):,} | {sum(each.seconds for each in outcomes):,.0f} | | | |")
    return 1 if any(each.exit_status or each.findings for each in outcomes) else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/fuzz",
        description="Coverage-guided fuzzing of what clients can reach, with atheris. Begins with the inputs kept in"
        " tests/fuzz/corpus and those of earlier runs in .dev/fuzz; stops a target at its first finding, and writes the"
        " input into .dev/fuzz/TARGET/findings.",
    )
    parser.add_argument("--runs", type=int, default=20_000, help="executions of each target (20000)")
    parser.add_argument("--target", nargs="+", choices=NAMES, metavar="TARGET", help=f"just these: {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=3600, help="at most for each target (3600)")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices (0: another one each time)")
    parser.add_argument(
        "--keep", action="store_true", help="write the fewest inputs that reach everything to tests/fuzz/corpus"
    )
    return parser.parse_args(arguments)


def _install() -> None:
    """Atheris beside the environment, not in it: nothing else needs its 100 MB."""
    installed = PACKAGES / "installed.txt"
    if installed.exists() and filecmp.cmp(installed, REQUIREMENTS, shallow=False):
        return
    print(f"Installing {REQUIREMENTS.relative_to(ROOT)} into {PACKAGES.relative_to(ROOT)}, once …", flush=True)
    shutil.rmtree(PACKAGES, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    into = ["--target", str(PACKAGES), "--require-hashes", "-r", str(REQUIREMENTS)]
    subprocess.run([*pip, "install", "--only-binary", ":all:", *into], check=True)
    shutil.copyfile(REQUIREMENTS, installed)


def _fuzz(target: Target, options: argparse.Namespace) -> Outcome:
    place = STATE / target.name
    corpus, findings = place / "corpus", place / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    _spread(corpus, [*catalogue.kept(target.name), *target.seeds()])
    dictionary = place / "tokens"
    dictionary.write_text("".join(map(_quoted, target.tokens)))
    before = {path for pattern in _FINDINGS for path in findings.glob(pattern)}
    began = _cpu_seconds()
    ended = _libfuzzer(
        target,
        f"-runs={options.runs}",
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-dict={dictionary}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
        str(corpus),
    )
    seconds = _cpu_seconds() - began
    (place / "log").write_text(ended.stderr, errors="replace")
    found = sorted({path for pattern in _FINDINGS for path in findings.glob(pattern)} - before)
    if ended.returncode:
        print("\n".join(ended.stderr.splitlines()[-40:]), file=sys.stderr)
    counts = re.findall(r"cov: (\d+) ft: (\d+)", ended.stderr) or [("0", "0")]
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", ended.stderr)
    reached, features = map(int, counts[-1])
    return Outcome(target.name, int(runs[1]) if runs else 0, seconds, reached, features, found, ended.returncode)


def _cpu_seconds() -> float:
    """Of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _quoted(token: bytes) -> str:
    """A line of a libFuzzer dictionary."""
    return '"' + "".join(f"\\x{octet:02x}" for octet in token) + '"\n'


def _libfuzzer(target: Target, *arguments: str) -> subprocess.CompletedProcess[str]:
    limits = (f"-max_len={target.max_octets}", f"-timeout={_MOST_SECONDS}", f"-rss_limit_mb={_MOST_MEGABYTES}")
    command = [sys.executable, "-P", "-m", "tests.fuzz.loop", target.name]
    again = STATE / target.name / "again"
    again.write_text(f'#!/bin/sh\nexec {shlex.join([*command, str(again)])} "$@"\n')
    again.chmod(0o755)
    return subprocess.run(
        [*command, str(again), *limits, *arguments],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(PACKAGES)))},
    )


def _spread(directory: Path, inputs: Iterable[bytes]) -> None:
    """Inputs as libFuzzer has them: a file each, named after what is in it."""
    directory.mkdir(parents=True, exist_ok=True)
    for octets in inputs:
        (directory / hashlib.sha1(octets, usedforsecurity=False).hexdigest()).write_bytes(octets)


def _keep(target: Target) -> None:
    with tempfile.TemporaryDirectory(dir=STATE) as fewest:
        limit = f"-max_len={min(target.max_octets, _LONGEST_KEPT)}"
        _libfuzzer(target, limit, "-merge=1", fewest, str(STATE / target.name / "corpus")).check_returncode()
        inputs = {path.read_bytes() for path in Path(fewest).iterdir()}.difference(target.seeds())
    catalogue.keep(target.name, inputs)
    print(f"{target.name}: kept {len(inputs)} inputs, {sum(map(len, inputs))} octets", flush=True)


def _line(outcome: Outcome) -> str:
    found = f", FOUND: {', '.join(map(str, outcome.findings)) or 'see the log'}" if outcome.exit_status else ""
    return f"{outcome.name}: {outcome.runs} executions in {outcome.seconds:.0f} s of CPU{found}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
