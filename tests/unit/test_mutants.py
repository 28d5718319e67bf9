"""The list of breakages that ./scripts/mutants makes: each can be made, and has tests that belong to it."""

from __future__ import annotations

import ast
import re
from functools import cache

from scripts.mutants import ROOT, mutants, stale

#: A test, as the pages of docs name one.
_NAMED = re.compile(r"`(tests/[\w/]+\.py::\w+)`")


@cache
def sound(file: str) -> tuple[str, str]:
    """The text of a file, and its tree."""
    text = (ROOT / file).read_text("utf-8")
    return text, ast.dump(ast.parse(text))


def test_the_list_is_of_this_code() -> None:
    assert [(mutant.file, mutant.old) for mutant in mutants() if stale(mutant)] == []
    for mutant in mutants():
        text, dump = sound(mutant.file)
        assert ast.dump(ast.parse(mutant.applied_to(text))) != dump, mutant.promise


def test_the_list_is_long_enough_and_ci_runs_a_dozen() -> None:
    assert len(mutants()) >= 80
    assert sum(mutant.quick for mutant in mutants()) == 12


def test_each_has_tests_that_exist() -> None:
    for mutant in mutants():
        assert mutant.tests
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), test
            assert f"def {name}" in (ROOT / path).read_text("utf-8"), test


def test_what_is_promised_of_mail_that_leaves_and_of_what_comes_back_has_its_breakages() -> None:
    """Of each row of docs/guarantees.md, sections 9 and 10, a test stands by its name in tests/mutants.toml, with a
    breakage that it notices; and each other test that is named there does so by its name or with its file.
    """
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    promised = text[text.index("\n## 9. What leaves\n") :]
    tables = re.findall(r"^\| promise \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", promised, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 50
    noticing = {test for mutant in mutants() for test in mutant.tests}
    assert [row for row in rows if noticing.isdisjoint(_NAMED.findall(row))] == []
    assert [test for test in _NAMED.findall(promised) if noticing.isdisjoint((test, test.partition("::")[0]))] == []
