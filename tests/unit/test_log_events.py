"""Events of the log: each has one name in one form, stands in the source as a literal, and is in docs/operations.md.

Read from the syntax trees of `relay` and `config`: a name that is put together or handed on could have any form.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.core.errors import Unavailable
from relay.mail.message import Fault

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("relay", "config") for path in (ROOT / folder).rglob("*.py"))
FORM = re.compile(r"[a-z][a-z0-9_]*")
LEVELS = {"debug", "info", "warning", "error", "critical"}
#: Methods of a logger that write a line -> its level; None where an argument says it.
WRITERS = {level: level for level in LEVELS} | {
    "exception": "error",
    "warn": "warning",
    "fatal": "critical",
    "log": None,
}
#: The master's logger, of the standard library alone: `say(level, event, …)`.
MASTERS = {"say", "_write"}


def writers(tree: ast.AST) -> Iterator[tuple[ast.Attribute, ast.AST | None]]:
    """Each mention of a logger's method that writes, with what it stands in."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in WRITERS:
            holder = node.value
            name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
            if name.endswith("log"):
                yield node, parents.get(node)


def event_behind(parts: list[ast.expr], position: int) -> str | None:
    """The literal that stands there."""
    part = parts[position] if position < len(parts) else None
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else None


def events(text: str) -> Iterator[tuple[str | None, str | None, int]]:
    """Event, level and line of each place that writes to the log. No event: it is not a literal there."""
    tree = ast.parse(text)
    for method, stands_in in writers(tree):
        level = WRITERS[method.attr]
        if isinstance(stands_in, ast.Call) and stands_in.func is method:
            yield event_behind(stands_in.args, 0 if level else 1), level, method.lineno
        elif isinstance(stands_in, ast.Call):  # handed on, with the event behind it
            yield event_behind(stands_in.args, stands_in.args.index(method) + 1), level, method.lineno
        elif isinstance(stands_in, ast.Tuple):
            yield event_behind(stands_in.elts, stands_in.elts.index(method) + 1), level, method.lineno
        else:
            yield None, level, method.lineno
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in MASTERS:
            continue
        first = event_behind(node.args, 0)
        if first in LEVELS:
            yield event_behind(node.args, 1), first, node.lineno
        elif ast.unparse(node.func.value).endswith("log"):
            yield None, None, node.lineno


def written() -> dict[str, set[str]]:
    """Event -> the levels at which it is written, where the source says it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        for event, level, _ in events(path.read_text()):
            found[event or ""] |= {level} if level else set()
    return found


def documented() -> dict[str, set[str]]:
    page = (ROOT / "docs" / "operations.md").read_text().split("\n## The log\n")[1]
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \| \S", page, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "an event stands in the table twice"
    return {event: set(levels.split(", ")) for event, levels in rows}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_event_is_a_literal_in_the_one_form(path: Path) -> None:
    wrong = [(line, event) for event, _, line in events(path.read_text()) if not event or not FORM.fullmatch(event)]
    assert wrong == []


def test_each_event_is_in_the_table_and_no_other() -> None:
    assert sorted(documented()) == sorted(written())


def test_the_table_has_the_levels_of_the_source() -> None:
    for event, levels in written().items():
        assert levels <= documented()[event], event
        assert documented()[event] <= LEVELS, event


def outcomes() -> set[str]:
    """What `outcome` of a message may be: the words that verdicts and refusals are made with, and faults of a message.

    Only calls that this finds words for are allowed, so a new outcome can't be missed.
    """
    found = {fault.value for fault in Fault} | {f"{kind.service}_unavailable" for kind in Unavailable.__subclasses__()}
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in ("Verdict", "_Refused"):
                continue
            given = [call.args[1]] if len(call.args) > 1 else []
            given += [keyword.value for keyword in call.keywords if keyword.arg == "outcome"]
            choices = [
                part
                for value in given
                for part in ([value.body, value.orelse] if isinstance(value, ast.IfExp) else [value])
            ]
            words = [choice.value for choice in choices if isinstance(choice, ast.Constant)]
            handed_on = (
                "unusable.fault.value",
                "refused.outcome",
                "report['outcome']",
                "f'{unavailable.service}_unavailable'",
            )
            assert words or next(ast.unparse(value) for value in given) in handed_on, ast.unparse(call)
            found.update(map(str, words))
    return found


def test_each_outcome_of_a_message_is_explained() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    table = page.partition("### Outcomes of a message")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`) \| \S", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall("`([a-z0-9_]+)`", row)]
    assert sorted(named) == sorted(outcomes())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_modules_logger_has_one_name(path: Path) -> None:
    """`log`, made by structlog; `_log` is what an object has bound for itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and "get_logger(" in ast.unparse(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assert [ast.unparse(target) for target in targets] == ["log"]


@pytest.mark.parametrize(
    "code",
    [
        "log.info('two words')",
        "log.warning(f'{kind}_failed')",
        "self._log.error(event)",
        "log.exception('Upper')",
        "log.log(level, event)",
        "write = log.error if bad else log.warning",
        "summaries.write(log.info, 'two words', origin)",
        "summaries.write(log.info, event)",
        "write, event = self._log.info, 'two words'",
        "self._log.say('error', 'two words')",
        "self._log.say(level, 'fine')",
        "self._write('warning', 'two words', {})",
    ],
)
def test_the_search_finds_other_forms(code: str) -> None:
    found = list(events(code))
    assert found
    assert all(event is None or not FORM.fullmatch(event) for event, _, _ in found)
