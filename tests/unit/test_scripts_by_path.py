"""Programs of scripts/ that are run by their path: each works, or says in one line what to run in its place.

They run in a copy of that folder alone, by a Python without packages: there is nothing that one could change.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
#: These work by their path: one for operators, what `scripts/launch` runs, and what the benchmarks compare with.
BY_PATH = {"warm_cache.py", "bootstrap.py", "yardstick/clicks.py", "yardstick/sender.py"}


def files() -> set[str]:
    """What a user may take for a program: all that lies in the folder itself, and what is one below it."""
    paths = {path.relative_to(SCRIPTS).as_posix(): path.read_text("utf-8") for path in SCRIPTS.rglob("*.py")}
    return {
        name
        for name, text in paths.items()
        if not name.endswith("__init__.py") and ("/" not in name or 'if __name__ == "__main__"' in text)
    }


def program(command: str) -> str:
    """The file that a command of the folder runs."""
    name, *arguments = command.removeprefix("./scripts/").split()
    if name == "launch":
        (module,) = arguments
    else:
        (module,) = re.findall(r'/launch" (\S+) "\$@"$', (SCRIPTS / name).read_text("utf-8"), re.MULTILINE)
    path = SCRIPTS / module.replace(".", "/")
    return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).relative_to(SCRIPTS).as_posix()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(SCRIPTS, tmp_path_factory.mktemp("checkout") / "scripts"))


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Neither packages nor other programs can be found.
    command = [sys.executable, "-S", "-E", "-B", str(path), *arguments]
    return subprocess.run(
        command, cwd=path.parent, env={"PATH": ""}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", sorted(files() - BY_PATH))
def test_a_program_says_in_one_line_what_to_run(name: str, copy: Path) -> None:
    assert "\nif not __package__:\n    raise SystemExit(" in (SCRIPTS / name).read_text("utf-8"), "see CONTRIBUTING.md"
    ended = run(copy / name)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    part = re.fullmatch(r"This is a part of (\./scripts/\w+), and no command\.", line)
    if part:
        assert program(part[1]) in files()
        assert "__main__" not in (SCRIPTS / name).read_text("utf-8")
    else:
        instead = re.fullmatch(r"Run (\./scripts/\w+(?: [\w.]+)?) instead\.", line)
        assert instead, line
        assert program(instead[1]) == name


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_what_launch_runs_says_how_without_the_name_of_a_program(arguments: tuple[str, ...], copy: Path) -> None:
    ended = run(copy / "bootstrap.py", *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"usage: \./scripts/launch NAME .*\n", ended.stderr)
    assert [path.name for path in copy.parent.iterdir()] == ["scripts"]


def test_the_search_finds_programs() -> None:
    assert {"dev.py", "terminal.py", "benchmark/__main__.py", "services/ses_double.py"} <= files()
    assert files() >= BY_PATH
