"""Trees of releases that are out, for trials of two versions beside each other."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]


class NoSuchCommit(Exception):
    """This clone does not have the commit: it is a shallow one. The text is fit to be shown to a person."""


def unpack(commit: str, directory: Path) -> Path:
    """Unpacks the tree of a commit into `directory`, which is made where it is missing. Raises NoSuchCommit."""
    archive = subprocess.run(["git", "archive", commit], cwd=_ROOT, capture_output=True, check=False)
    if archive.returncode:
        raise NoSuchCommit(f"commit {commit} is not in this clone (git fetch --unshallow)")
    directory.mkdir(parents=True, exist_ok=True)
    # The library's own filter of entries came with Python 3.11.4.
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory
