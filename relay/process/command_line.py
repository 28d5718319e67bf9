"""What the programs of this package have in common on the command line. The master imports this, so next to nothing."""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

#: Those that stand alone.
_OPTIONS: Final = ("--check", "--version", "--help", "-h")


def with_packages(program: str, body: Callable[[], int]) -> int:
    """The exit status of the body; 2, and a line, where a package is missing that it imports."""
    try:
        return body()
    except ModuleNotFoundError as error:
        from config import missing_package

        return missing_package.refuse(error, program)


def run(
    program: str, usage: str, arguments: Sequence[str], *, serve: Callable[[], int], check: Callable[[], int]
) -> int:
    """Does what the arguments ask for; the exit status, 2 for wrong arguments. `program`: how it is started."""
    if not arguments:
        return serve()
    if len(arguments) > 1 or arguments[0] not in _OPTIONS:
        wrong = next((each for each in arguments if each not in _OPTIONS), None)
        kind = "unknown option" if wrong and wrong.startswith("-") else "unexpected argument"
        said = "one option at a time" if wrong is None else f"{kind}: {wrong}"
        sys.stderr.write(f"{program}: {said}\n\n{usage}")
        return 2
    if arguments[0] == "--check":
        return with_packages(program, check)
    if arguments[0] == "--version":
        from relay import __version__

        print(f"opensend-relay {__version__}")
        return 0
    print(usage, end="")
    return 0
