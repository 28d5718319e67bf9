"""The culprits of a statement are found by halving: the others stay together, and all of it is bounded."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
from structlog.testing import capture_logs

from relay.core.errors import PostgresLocked, PostgresRefused, PostgresUnavailable, Unstorable
from relay.postgres import halving
from relay.postgres.database import ConnectionLost, Overran, Rejected
from relay.postgres.halving import MOST_REFUSALS, in_halves

ERRORS: list[Callable[[], Exception]] = [
    lambda: Rejected("P0001"),
    PostgresRefused,
    lambda: Unstorable("22P05"),
    lambda: ValueError("a bug"),
]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving, "_SECONDS", 60.0)


class Statements:
    """Doubles numbers, and refuses all of a statement where one of these is in it."""

    def __init__(self, bad: Sequence[int], error: Callable[[], Exception] = PostgresRefused) -> None:
        self.asked: list[list[int]] = []
        self.refused: list[int] = []
        self._bad = set(bad)
        self._error = error

    def together(self, numbers: Sequence[int]) -> list[int]:
        self.asked.append(list(numbers))
        if self._bad.intersection(numbers):
            raise self._error()
        return [2 * number for number in numbers]

    def results(self, numbers: Sequence[int]) -> list[int | None]:
        return in_halves(numbers, self.together, refused=lambda number, _: self.refused.append(number))


@pytest.mark.parametrize("error", ERRORS)
def test_one_culprit_is_found_by_a_few_statements_wherever_it_stands(error: Callable[[], Exception]) -> None:
    for count in (1, 2, 3, 10, 200, 1000):
        for bad in {0, count // 3, count - 1}:
            statements = Statements([bad], error)
            expected = [None if number == bad else 2 * number for number in range(count)]
            with capture_logs():  # a traceback takes long to be printed
                assert statements.results(range(count)) == expected
            assert statements.refused == [bad]
            assert len(statements.asked) <= 1 + 2 * math.ceil(math.log2(count))


def test_several_culprits_and_no_other_are_left_out() -> None:
    chance = random.Random(1)
    for _ in range(200):
        count = chance.randrange(1, 250)
        bad = chance.sample(range(count), min(count, chance.randrange(5)))
        statements = Statements(bad)
        assert statements.results(range(count)) == [None if n in bad else 2 * n for n in range(count)]
        assert sorted(statements.refused) == sorted(bad)


def test_where_all_are_refused_the_end_comes_soon() -> None:
    for count in (10, 200, 1000):
        statements = Statements(range(count))
        assert statements.results(range(count)) == [None] * count
        assert len(statements.asked) <= min(2 * count, MOST_REFUSALS)


def test_where_many_are_refused_the_others_are_mostly_done() -> None:
    chance = random.Random(2)
    bad = chance.sample(range(200), 20)
    statements = Statements(bad)
    results = statements.results(range(200))
    assert len(statements.asked) <= 2 * MOST_REFUSALS + 1
    assert all(result in (None, 2 * number) for number, result in enumerate(results))
    assert not any(results[number] for number in bad)
    assert any(results)


@pytest.mark.parametrize(
    "away",
    [PostgresUnavailable(), PostgresLocked(), ConnectionLost(unclear=True), Overran(blocked=True)],
    ids=lambda error: type(error).__name__,
)
def test_where_postgres_is_away_nothing_else_is_tried(away: Exception) -> None:
    asked: list[Sequence[int]] = []

    def together(numbers: Sequence[int]) -> Sequence[int]:
        asked.append(numbers)
        if len(asked) == 1:
            raise PostgresRefused
        if len(asked) == 3:
            raise away
        return numbers

    assert in_halves(range(8), together) == [0, 1, 2, 3, None, None, None, None]
    assert len(asked) == 3


def test_what_takes_long_is_not_tried_further(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(halving, "_SECONDS", 1.0)
    monkeypatch.setattr(halving.time, "monotonic", lambda: now)
    statements = Statements([3])

    def slow(numbers: Sequence[int]) -> list[int]:
        nonlocal now
        now += 0.6
        return statements.together(numbers)

    in_halves(range(8), slow)
    assert len(statements.asked) == 2


def test_a_bug_is_said_once() -> None:
    with capture_logs() as lines:
        Statements([5], ValueError).results(range(200))
    assert [line["event"] for line in lines] == ["unexpected_error"]


def test_nothing_asks_nothing_and_too_few_results_are_no_results() -> None:
    nothing = Statements([])
    assert nothing.results([]) == nothing.asked == []
    with capture_logs():
        assert in_halves([1, 2], lambda _: [7]) == [7, 7]  # each by itself
