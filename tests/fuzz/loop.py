"""Fuzzes one target with atheris, in a process that `./scripts/fuzz` starts.

Arguments: the target's name, libFuzzer's own name for this program (it starts that where it needs itself once more),
and libFuzzer's arguments.
"""

from __future__ import annotations

import sys

import atheris

from tests.fuzz import catalogue


def main(name: str, program: str, *arguments: str) -> None:
    """Doesn't return: libFuzzer ends the process."""
    with atheris.instrument_imports(include=["relay"]):
        target = catalogue.load(name)
    atheris.Setup([program, *arguments], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
