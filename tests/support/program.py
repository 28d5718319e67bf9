"""A program of this package, run to its end with a separate environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NAME_OF_ERROR = re.compile(r"\b\w*(?:Error|Exception|Timeout)\b(?!\))|Traceback")


class Result:
    """What a program printed and how it ended."""

    def __init__(self, ended: subprocess.CompletedProcess[str]) -> None:
        self.status = ended.returncode
        self.output = ended.stdout
        self.errors = ended.stderr

    def of(self, part: str) -> list[tuple[str, str]]:
        """(level, text) of each line of a check about a part."""
        found = [line.split(None, 2) for line in self.output.splitlines()]
        return [(level, text) for level, name, text in found if name == part]


def run(module: str, *arguments: str, **variables: str) -> Result:
    """`python -m module`; its environment has PATH and HOME, and these variables."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = Result(
        subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    )
    # What a check says are words; names of errors of Python and of libraries say nothing to most of its readers.
    assert "--check" not in arguments or not _NAME_OF_ERROR.search(result.output), result.output
    return result
