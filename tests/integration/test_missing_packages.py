"""Started by a Python that has not got the packages, each program says so in one line: which one, and what to do.

Programs are found by a search: modules that can be run, what the documents name, and the commands of the package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from relay.command import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
#: `opensend-relay`, as an installed package has it.
INSTALLED = ("-c", "import sys; from relay.command import main; sys.exit(main())")
#: Commands that take a word.
WITH_A_WORD = ("preview", "replay", "parse")


def runnable() -> set[str]:
    """Modules of relay and scripts that do something when they are run."""
    files = [path for folder in ("relay", "scripts") for path in (ROOT / folder).rglob("*.py")]
    texts = {path.relative_to(ROOT).with_suffix(""): path.read_text("utf-8") for path in files}
    return {
        ".".join(path.parts).removesuffix(".__main__")
        for path, text in texts.items()
        if re.search(r"^if __name__ == ", text, re.MULTILINE)
    }


def documented() -> set[str]:
    """Modules that the documents say how to run."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Procfile"]
    named = re.compile(r"python3?\S* (?:-\w+ )*-m ((?:relay|scripts)[\w.]*\w|relay)")
    return {name for page in pages for name in named.findall(page.read_text("utf-8"))}


def without_packages(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the standard library and the checkout alone."""
    return subprocess.run(
        [sys.executable, "-S", "-P", *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(*command: str) -> None:
    ended = without_packages(*command)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert " is missing in " in line
    assert line.endswith("pip install -r requirements.txt")


@pytest.mark.parametrize("module", sorted(runnable() | documented()))
def test_a_missing_package_is_one_line(module: str) -> None:
    assert_refused("-m", module)


@pytest.mark.parametrize(
    "command",
    [
        "-m relay --check",
        "-m relay.delivery --check",
        "-m relay.delivery --preview 00000000-0000-4000-8000-000000000000",
        "-m relay.delivery --unclear",
        "-m relay.mail message.eml",
        "-m relay.web --check",
        "-m relay.web --replay https://sqs.example/1/dead",
        "-m scripts.warm_cache --help",
        "scripts/warm_cache.py",
    ],
)
def test_it_is_one_line_with_arguments_and_by_path(command: str) -> None:
    assert_refused(*command.split())


# health needs the standard library alone.
@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"health"}))
def test_it_is_one_line_for_each_command_of_the_package(name: str) -> None:
    assert_refused(*INSTALLED, name, *(["x"] if name in WITH_A_WORD else []))


@pytest.mark.parametrize(
    "command", ["-m relay --help", "-m relay --version", "-m relay.delivery --help", "-m relay.web --bogus"]
)
def test_what_needs_no_package_works_without(command: str) -> None:
    ended = without_packages(*command.split())
    assert ended.returncode == (2 if "--bogus" in command else 0)
    assert "missing" not in ended.stderr


def test_the_search_finds_programs() -> None:
    assert {"relay", "relay.mail", "scripts.dev", "scripts.benchmark"} <= runnable()
    assert {"relay", "relay.mail", "scripts.warm_cache"} <= documented()
