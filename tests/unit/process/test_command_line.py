"""What both programs do for the same arguments."""

from __future__ import annotations

import pytest

from relay import __version__
from relay.process import command_line


@pytest.mark.parametrize(
    ("arguments", "status", "printed", "complained"),
    [
        ([], 7, "", ""),
        (["--check"], 8, "", ""),
        (["--version"], 0, f"opensend-relay {__version__}\n", ""),
        (["--help"], 0, "how to\n", ""),
        (["-h"], 0, "how to\n", ""),
        (["--chekc"], 2, "", "a program: unknown option: --chekc\n\nhow to\n"),
        (["--check", "--help"], 2, "", "a program: one option at a time\n\nhow to\n"),
        ([""], 2, "", "a program: unexpected argument: \n\nhow to\n"),
    ],
)
def test_arguments(
    arguments: list[str], status: int, printed: str, complained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = command_line.run("a program", "how to\n", arguments, serve=lambda: 7, check=lambda: 8)
    assert (ended, *capsys.readouterr()) == (status, printed, complained)
