"""What is asked of a process that may end at any moment is asked in one module, which expects that.

A test that asks psutil by itself fails by chance: the process can end between the look that found it and the question.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts.services import processes

ROOT = Path(__file__).resolve().parents[2]
ASKED = ROOT / "scripts" / "services" / "processes.py"
#: Methods of psutil.Process that list or judge, and those that act on what a list found.
QUESTIONS = {"children", "is_running", "name", "parents", "resume", "status", "suspend"}
MODULES = [path for folder in ("scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py")) if path != ASKED]


def _questions(source: str) -> list[int]:
    """Lines that ask a process directly, of a module that meets processes."""
    tree = ast.parse(source)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    if not imported & {"psutil", "processes"}:
        return []
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in QUESTIONS
        and not node.args
        and ast.unparse(node.func.value) != "processes"
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_processes_are_asked_where_their_end_is_expected(path: Path) -> None:
    assert not _questions(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import psutil\n[p.name() for p in psutil.process_iter()]", [2]),
        ("import psutil\npsutil.Process(1).children(recursive=True)", [2]),
        ("from scripts.services import processes\nprocesses.children(1)[0].is_running()", [2]),
        ("from scripts.services import processes\nprocesses.children(1, recursive=True)", []),
        ("import psutil\ntable.name(slot)", []),
        ("path.name()", []),
    ],
)
def test_the_search_finds_such_questions(source: str, lines: list[int]) -> None:
    assert _questions(source) == lines


# A process that has ended


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


def test_a_process_that_ended_is_in_no_list_and_an_answer_is_given_for_it() -> None:
    with _started() as left, _started() as ended:
        ours = processes.children(os.getpid())
        assert {left.pid, ended.pid} <= {child.pid for child in ours}
        assert [member.pid for member in processes.family(ended.pid)] == [ended.pid]
        assert [member.pid for member in processes.in_group(ended.pid)] == [ended.pid]
        gone = psutil.Process(ended.pid)
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        # A zombie, which psutil lists.
        assert processes.ended(gone)
        assert processes.ended(gone.pid)
        assert ended.pid not in {child.pid for child in processes.children(os.getpid())}
        assert processes.in_group(ended.pid) == []
        ended.wait()
        assert processes.ended(gone)
        assert processes.ended(gone.pid)
        assert processes.children(gone.pid) == processes.family(gone.pid) == []
        assert processes.name_of(gone) == ""
        assert processes.named("python", [gone]) == []
        living = psutil.Process(left.pid)
        processes.send([gone, living], signal.SIGSTOP)
        processes.kill([gone, living])
        assert left.wait(60) == -signal.SIGKILL
