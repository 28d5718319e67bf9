"""What a program says where a package of Python is not there: mostly, it was started by another Python than it needs.

Nothing but the standard library, and little of it.
"""

from __future__ import annotations

import sys

_OURS = ("config", "relay", "scripts", "tests")
#: Exit status: not like this.
_EXIT_WRONG = 2


def refuse(error: ModuleNotFoundError, program: str) -> int:
    """Says on standard error which package is missing, and what to do; the exit status. `program`: how it was started.

    Raises the error where the module is one of ours: then something else is wrong.
    """
    package = (error.name or "").partition(".")[0]
    if not package or package in _OURS:
        raise error
    sys.stderr.write(absent(package, program))
    return _EXIT_WRONG


def absent(package: str, program: str) -> str:
    """The line about a package that is missing."""
    return (
        f"{program}: the package {package} is missing in {sys.executable}. In a checkout, ./scripts/dev makes an"
        " environment, and .venv/bin/python runs in it; elsewhere: pip install -r requirements.txt\n"
    )
