"""`opensend-relay COMMAND`: which main function each command is, and what it costs a process that serves."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from relay import __version__, command

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """What the mains were called with: module, arguments."""
    calls: list[tuple[str, list[str]]] = []

    def noted(name: str) -> Callable[..., int]:
        def main(arguments: Sequence[str], program: str) -> int:
            assert program.startswith("opensend-relay ")
            calls.append((name, list(arguments)))
            return 7

        return main

    for name in ("relay.__main__", "relay.delivery.__main__", "relay.web.__main__", "relay.mail.__main__"):
        monkeypatch.setattr(importlib.import_module(name), "main", noted(name.removesuffix(".__main__")))
    return calls


@pytest.mark.parametrize(
    ("arguments", "module", "given"),
    [
        ("serve", "relay", ""),
        ("serve --check", "relay", "--check"),
        ("worker", "relay.delivery", ""),
        ("web", "relay.web", ""),
        ("check", "relay", "--check"),
        ("check relay", "relay", "--check"),
        ("check worker", "relay.delivery", "--check"),
        ("check web", "relay.web", "--check"),
        ("preview an-id", "relay.delivery", "--preview an-id"),
        ("unclear", "relay.delivery", "--unclear"),
        ("unclear --fail an-id", "relay.delivery", "--unclear --fail an-id"),
        ("replay a-url", "relay.web", "--replay a-url"),
        ("parse - --full", "relay.mail", "- --full"),
    ],
)
def test_a_command_is_a_main_function(
    called: list[tuple[str, list[str]]], arguments: str, module: str, given: str
) -> None:
    assert command.main(arguments.split()) == 7
    assert called == [(module, given.split())]


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "srve",
        "--srve",
        "check all",
        "check web web",
        "health all",
        "preview",
        "preview --x",
        "preview a b",
        "replay",
    ],
)
def test_wrong_arguments_are_an_error_with_usage(
    called: list[tuple[str, list[str]]], arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments.split()) == 2
    printed, complained = capsys.readouterr()
    assert (called, printed) == ([], "")
    assert "usage: opensend-relay" in complained


@pytest.mark.parametrize("name", [name for name in command.COMMANDS if name not in {"warm-cache", "parse"}])
def test_each_command_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main([name, "--help"])
    printed, complained = capsys.readouterr()
    assert f"usage: opensend-relay {name}" in (printed or complained)
    assert (status, complained) in {(0, ""), (2, complained)}


@pytest.mark.parametrize("name", ["warm-cache", "parse"])
def test_commands_with_options_of_their_library_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main([name, "--help"])
    assert f"opensend-relay {name}" in capsys.readouterr().out


def test_the_usage_names_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    named = re.findall(r"^  ([a-z][a-z-]+) .*$", capsys.readouterr().out, re.MULTILINE)
    assert named == list(command.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"opensend-relay {__version__}\n"


def test_a_master_imports_no_more_than_by_its_module() -> None:
    """See tests/integration/test_master.py for the rest of what it imports."""
    code = "import sys; import relay.__main__, relay.process.children; {}print(*sys.modules)"
    loaded = [
        set(
            subprocess.run(
                [sys.executable, "-c", code.format(more)], check=True, cwd=ROOT, capture_output=True, text=True
            ).stdout.split()
        )
        for more in ("", "import relay.command; ")
    ]
    assert loaded[1] - loaded[0] == {"relay.command"}


# What the project says of its packages.


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "relay.__version__"}


def test_each_file_that_is_no_module_is_in_the_wheel() -> None:
    declared = {
        f"{package}/{name}"
        for package, names in PROJECT["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("relay", "config")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert declared == there
    assert {path for path in there if path.endswith("py.typed")} == {"relay/py.typed", "config/py.typed"}


def test_what_builds_the_wheel_is_pinned() -> None:
    built_by = {re.split(r"[<>=]", each)[0] for each in PROJECT["build-system"]["requires"]}
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "build.txt").read_text(), re.MULTILINE))
    assert built_by == pinned
