"""The list of breakages that ./scripts/mutants makes: each can be made, and has tests that belong to it."""

from __future__ import annotations

import ast

from scripts.mutants import ROOT, mutants, stale


def test_the_list_is_of_this_code() -> None:
    assert [(mutant.file, mutant.old) for mutant in mutants() if stale(mutant)] == []
    for mutant in mutants():
        sound = (ROOT / mutant.file).read_text("utf-8")
        assert ast.dump(ast.parse(mutant.applied_to(sound))) != ast.dump(ast.parse(sound)), mutant.promise


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
