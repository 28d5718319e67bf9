"""docs/replies.md has each line of `--check` and each error at start, and no line that is gone.

The lines are found in the source: what is given to Finding, to the errors of settings, certificate and sockets, and the
words of the tables that translate errors of libraries. A part that is filled in is `…`, there and here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "replies.md").read_text().split("\n## Lines of `--check`")[1]
SOURCES = (
    *sorted((ROOT / "relay" / "operator").glob("*check*.py")),
    *sorted((ROOT / "relay" / "operator").glob("*probe*.py")),
    ROOT / "relay" / "operator" / "preflight.py",
    *(ROOT / "relay" / room / "causes.py" for room in ("core", "postgres", "redis", "aws")),
    *(ROOT / "relay" / "server" / name for name in ("certificate.py", "sockets.py", "descriptors.py")),
    *(ROOT / "relay" / "process" / name for name in ("children.py", "web_children.py", "delivery_children.py")),
    ROOT / "relay" / "postgres" / "schema_check.py",
    ROOT / "config" / "environment.py",
)
#: Calls that are given a line, or a part of one.
_SAYING = {"CertificateError": 0, "CannotListen": 0, "refuse": 0, "Wrong": 0, "Finding": 2, "append": 0}
#: Tables of words; their values are lines.
_TABLES = {"_POSTGRES", "_OTHERS", "_NETWORK", "_CAUSES", "_MEANINGS"}
#: Letters of the shortest template that is a line: shorter ones are frames, of which another template has the rest.
_FEWEST_LETTERS = 12
#: Parts of lines that are documented as a whole.
PARTS = {"is set, but not shown"}
#: Lines that a frame and a reason make together.
FRAMED = {
    "… is set, but not shown: …should be …",
    "…: 42501 (insufficient privilege)",
    "…: does not give back what was written; …",
    "…: … for …; …",
    "refused: …",
    "…: … (…)",
    "… is not a setting; did you mean …?",
}


def template(node: ast.expr | None) -> Iterator[str]:
    """The text of a literal, with `…` for what is filled in; several where it is added to, or chosen."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(str(value.value) if isinstance(value, ast.Constant) else "…" for value in values)
        case ast.BinOp(left=left, right=_):
            yield from template(left)
        case ast.IfExp(body=body, orelse=orelse):
            yield from template(body)
            yield from template(orelse)


def said(path: Path) -> Iterator[str]:
    """The templates of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments) if name in _SAYING:
                place = _SAYING[name]
                level = arguments[0] if name == "Finding" else None
                if len(arguments) > place and not (isinstance(level, ast.Name) and level.id == "OK"):
                    yield from template(arguments[place])
            case ast.Yield(value=value) | ast.Return(value=value):
                yield from template(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(values=values)) if name in _TABLES:
                for value in values:
                    yield from template(value)
            case ast.Assign(targets=[ast.Name(id="text")], value=value):
                yield from template(value)
            case ast.AnnAssign(target=ast.Name(id="_UNENCODED"), value=value):
                yield from template(value)


def documented() -> list[str]:
    """The lines of the page, with `…`."""
    rows = [row for row in PAGE.splitlines() if row.startswith("| `")]
    return [text for row in rows for text in re.findall("`([^`]*)`", row.split(" | ")[0])]


SAID = {text for path in SOURCES for text in said(path)}
LINES = {text for text in SAID - PARTS if sum(map(str.isalpha, text)) >= _FEWEST_LETTERS}
DOCUMENTED = documented()


def pattern(line: str) -> re.Pattern[str]:
    """What a documented line may stand for."""
    return re.compile(".+".join(map(re.escape, line.split("…"))))


def test_each_line_is_documented() -> None:
    assert len(LINES) > 90
    patterns = [pattern(line) for line in DOCUMENTED if line not in FRAMED]
    assert [text for text in sorted(LINES) if not any(each.fullmatch(text) for each in patterns)] == []


def test_no_line_is_documented_that_is_gone() -> None:
    assert len(DOCUMENTED) > 90
    gone = [line for line in DOCUMENTED if not any(map(pattern(line).fullmatch, SAID))]
    assert [line for line in gone if line not in FRAMED] == []
