"""Comments, docstrings and papers are in plain technical English: they name processes, clients and rows, not persons.

Each word below stood for a thing that has a name: no caller, another process, the client, a separate row.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(path for folder in ("config", "relay", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))
PAPERS = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
_FORBIDDEN = re.compile(
    r"\b((?:any|every|no|some)body|(?:any|every|some)one|who(?:m|so)?ever|he|him(?:self)?|his|she|her(?:s|self)?"
    r"|befalls?|befell|brimful|breathes?|deaf|likewise|umpteenth|of\s+its\s+own|worth\s+the\s+name)\b",
    re.IGNORECASE,
)
#: In comments and docstrings of the program: words for processes, endpoints and failures that have a term in the field.
_OF_LIVING_THINGS: Final = re.compile(
    r"\b(troubles?|whom?|tells?|telling|told|hears?|heard|hungry|house|die[sd]?|dying|dead(?![- ]letter)|alive|living)"
    r"\b",
    re.IGNORECASE,
)
#: In papers, and in texts that the program prints: the same, and phrases that only look like English.
_OF_TEXTS: Final = re.compile(
    r"\b(whom|tells?|telling|told|hears?|heard|hungry|of\s+(?:its|our|their)\s+own|be\s+had|as\s+ever|comes?\s+again"
    r"|in\s+good\s+order|at\s+the\s+least|in\s+lots|slower,\s+please|befalls?|likewise|whoever|rubbish)\b",
    re.IGNORECASE,
)
#: In names of tests, which have to say what is covered: persons, and what they tell each other.
_OF_NAMES: Final = re.compile(r"nobod|everybod|whoever|befall|_wish\b|_as_ever|_tells?_|_told_|_hears?_|_pays?_")
#: Labels of faults in tables of measurements.
_LABELS: Final = ("gone without a word", "speaking rubbish")
#: Names of tests, and examples.
_QUOTED = re.compile(r"`[^`]*`|\S+@\S+|\"[^\"\n]*\"")


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """The comments and docstrings of a module: first line, text. Comments of adjacent lines are one."""
    first = last = 0
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1 and lines:
            yield first, "\n".join(lines)
            lines = []
        first = first if lines else token.start[0]
        last = token.start[0]
        lines.append(token.string.lstrip("#: "))
    if lines:
        yield first, "\n".join(lines)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            yield node.body[0].lineno, ast.get_docstring(node) or ""


def found_in(text: str, forbidden: re.Pattern[str] = _FORBIDDEN) -> list[str]:
    """The words that are not to be used."""
    return [" ".join(word.lower().split()) for word in forbidden.findall(_QUOTED.sub("", text))]


def found_under(
    folder: str,
    passages_of: Callable[[str], Iterator[tuple[int, str]]],
    forbidden: re.Pattern[str] = _FORBIDDEN,
) -> list[str]:
    """Where such words stand in the modules of a folder: file, line, words. `passages_of`: what is searched of one."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(words)}"
        for path in PROGRAMS
        if path.is_relative_to(ROOT / folder)
        for line, text in passages_of(path.read_text())
        if (words := found_in(text, forbidden))
    ]


@pytest.mark.parametrize("folder", ["config", "relay", "scripts", "tests"])
def test_comments_name_no_persons(folder: str) -> None:
    assert found_under(folder, prose_of) == []


@pytest.mark.parametrize("folder", ["config", "relay"])
def test_comments_of_the_program_use_the_terms_of_the_field(folder: str) -> None:
    assert found_under(folder, prose_of, _OF_LIVING_THINGS) == []


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """The texts in a module that are no docstrings and have several words: first line, text."""
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and " " in text.strip() and id(node) not in alone:
            yield node.lineno, text


@pytest.mark.parametrize("folder", ["config", "relay", "scripts"])
def test_texts_of_the_program_are_plain(folder: str) -> None:
    assert found_under(folder, texts_of, _OF_TEXTS) == []


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_papers_name_no_persons(page: Path) -> None:
    found = [
        f"{page.relative_to(ROOT)}:{number}: {', '.join(words)}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if not any(label in line for label in _LABELS)
        if (words := found_in(line) + found_in(line, _OF_TEXTS))
    ]
    assert found == []


def test_names_of_tests_say_what_is_covered() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in PROGRAMS
        if path.is_relative_to(ROOT / "tests")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
        if _OF_NAMES.search(name)
    ]
    assert found == []


def test_the_search_looks_at_prose_alone() -> None:
    source = '"""Nobody.\n\nOf its\nown."""\nnobody = "everyone"  # worth\n# the name\ndef his(): ...\n'
    assert [found_in(text) for _, text in prose_of(source)] == [["worth the name"], ["nobody", "of its own"]]
    assert found_in("A dead worker. The dead-letter queue.\n`alive`; the host\ntells whom", _OF_LIVING_THINGS) == [
        "dead",
        "tells",
        "whom",
    ]
    assert [text for _, text in texts_of('"""Not this."""\nx = "but this one"\n"nor this"\n')] == ["but this one"]
    assert found_in("slower, please; clients hear\nof their own", _OF_TEXTS) == [
        "slower, please",
        "hear",
        "of their own",
    ]
    assert found_in("`test_nobody_waits`, anyone@example.com and `whoever`") == []
