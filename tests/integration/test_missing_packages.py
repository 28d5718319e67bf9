"""Started by a Python that has not got the packages, each program says so in one line: which one, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def without_packages(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the standard library and the checkout alone."""
    return subprocess.run(
        [sys.executable, "-S", "-P", *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        "-m relay",
        "-m relay --check",
        "-m relay.delivery",
        "-m relay.delivery --check",
        "-m relay.delivery --preview 00000000-0000-4000-8000-000000000000",
        "-m relay.delivery --unclear",
        "-m relay.web",
        "-m relay.web --check",
        "-m relay.web --replay https://sqs.example/1/dead",
        "-m scripts.warm_cache --help",
        "-m scripts.smoke",
        "-m scripts.dev",
        "-m scripts.benchmark",
        "scripts/warm_cache.py",
    ],
)
def test_a_missing_package_is_one_line(command: str) -> None:
    ended = without_packages(*command.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert " is missing in " in line
    assert line.endswith("pip install -r requirements.txt")


@pytest.mark.parametrize(
    "command", ["-m relay --help", "-m relay --version", "-m relay.delivery --help", "-m relay.web --bogus"]
)
def test_what_needs_no_package_works_without(command: str) -> None:
    ended = without_packages(*command.split())
    assert ended.returncode == (2 if "--bogus" in command else 0)
    assert "missing" not in ended.stderr
