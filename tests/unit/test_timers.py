"""A timer that fires once is started once: started again, libev lets what was left of its time pass, which is none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELAY = ROOT / "relay"


def _started_again(source: str) -> list[int]:
    """Lines with a timer without `repeat` that is not started where it is made, or not only there."""
    tree = ast.parse(source)
    starts = [ast.unparse(node.func.value) for node in ast.walk(tree) if _calls(node, "start")]
    bad = []
    for node in ast.walk(tree):
        if not _calls(node, "timer") or len(node.args) > 1 or node.keywords:
            continue
        made = [each for each in ast.walk(tree) if isinstance(each, ast.Assign) and each.value is node]
        if not made or starts.count(ast.unparse(made[0].targets[0])) != 1 or not _follows(tree, made[0]):
            bad.append(node.lineno)
    return bad


def _calls(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name


def _follows(tree: ast.AST, made: ast.Assign) -> bool:
    """Whether the next statement starts what this one makes."""
    start = f"{ast.unparse(made.targets[0])}.start("
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and made in body[:-1]:
            return ast.unparse(body[body.index(made) + 1]).startswith(start)
    return False


@pytest.mark.parametrize("path", sorted(RELAY.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_timer_that_fires_once_is_made_where_it_is_started(path: Path) -> None:
    assert not _started_again(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("t = loop.timer(1)\nt.start(f)", []),
        ("t = loop.timer(1, 1)\nx = 1\nt.start(f)\nt.start(f)", []),
        ("t = loop.timer(1, repeat=1)", []),
        ("t = loop.timer(1)\nx = 1\nt.start(f)", [1]),
        ("t = loop.timer(1)\nt.start(f)\ndef f():\n    t.start(f)", [1]),
        ("loop.timer(1).start(f)", [1]),
    ],
)
def test_the_search_finds_such_timers(source: str, lines: list[int]) -> None:
    assert _started_again(source) == lines
