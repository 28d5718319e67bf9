"""Expressions that regular expression engines of Python 3.11 may read wrongly, and where they are compiled.

    python -m tests.security.possessive

imports everything of the relay, its settings and its scripts, with a recorder in the place of the compiler of `re`, and
prints one JSON object for each expression that was compiled.

Possessive repetitions and atomic groups came with Python 3.11. Until 3.11.5 they lost the place in the text where what
they hold goes back (CPython issue 106052), and with groups in them they fail in later versions too (issue 101955). A
possessive repetition of one character or class has a separate opcode, which was always right.
"""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from re import _compiler, _parser  # type: ignore[attr-defined]  # isort: skip

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("relay", "config", "scripts")
_ONE_CHARACTER = ("LITERAL", "NOT_LITERAL", "IN", "ANY")


class Compiled(NamedTuple):
    """One expression, and whose code compiled it: `ours` is the path of a module of the checkout, empty for others."""

    pattern: str
    octets: bool
    flags: int
    ours: str
    line: int


def is_risky(pattern: str | bytes, flags: int = 0) -> bool:
    """Whether something in it is possessive or atomic that is more than one character or class. Raises re.error."""
    return any(_risky(_parser.parse(pattern, flags)))


def _risky(parsed: Sequence[Any]) -> Iterator[bool]:
    for operator, value in parsed:
        name = str(operator)
        if name == "ATOMIC_GROUP":
            yield True
        elif name == "POSSESSIVE_REPEAT":
            repeated = value[2]
            yield len(repeated) != 1 or str(repeated[0][0]) not in _ONE_CHARACTER
        for part in _parts(name, value):
            yield from _risky(part)


def _parts(name: str, value: Any) -> Iterator[Sequence[Any]]:
    """What stands within one element."""
    if name == "ATOMIC_GROUP":
        yield value
    elif name.endswith("_REPEAT"):
        yield value[2]
    elif name == "SUBPATTERN":
        yield value[3]
    elif name in ("ASSERT", "ASSERT_NOT"):
        yield value[1]
    elif name == "BRANCH":
        yield from value[1]
    elif name == "GROUPREF_EXISTS":
        yield from (part for part in value[1:] if part)


def in_source() -> Iterator[tuple[str, str | bytes]]:
    """The texts of the source, each with its place: expressions are among them, and pieces of some. What is put into
    a text stands for two characters.
    """
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    pieces = [str(each.value) if isinstance(each, ast.Constant) else "xy" for each in node.values]
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(pieces)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def _caller() -> FrameType:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "re":
        frame = frame.f_back
    assert frame is not None
    return frame


def main() -> None:
    """Prints what is compiled when everything is imported."""
    found: list[Compiled] = []
    compile_ = _compiler.compile

    def recorded(pattern: Any, flags: int = 0) -> Any:
        compiled = compile_(pattern, flags)
        frame = _caller()
        path = Path(frame.f_code.co_filename)
        within = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path()
        ours = str(within) if within.parts and within.parts[0] in ROOMS else ""
        octets = isinstance(pattern, bytes)
        text = pattern.decode("latin-1") if octets else pattern
        found.append(Compiled(text, octets, int(flags), ours, frame.f_lineno))
        return compiled

    re.purge()
    _compiler.compile = recorded
    for room in ROOMS:
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, f"{room}."):
            if not module.name.endswith("__main__"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    importlib.import_module(module.name)
    for each in found:
        print(json.dumps(each._asdict()))


if __name__ == "__main__":
    main()
