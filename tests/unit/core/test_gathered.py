"""Questions that are asked together: no caller is left waiting, whatever becomes of the greenlet that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gevent
import pytest
from gevent.event import Event

from relay.core import idleness
from relay.core.gathered import Gathered, NotAnswered


def doubled(numbers: Sequence[int]) -> list[int]:
    return [2 * number for number in numbers]


def ask(gathered: Gathered[int, int], *numbers: int) -> list[gevent.Greenlet[..., int]]:
    return [gevent.spawn(gathered.ask, number) for number in numbers]


@pytest.mark.parametrize("seconds", [None, 0.0, 0.01])
@pytest.mark.parametrize("most", [None, 1, 2])
def test_each_gets_its_answer(seconds: float | None, most: int | None) -> None:
    rounds: list[int] = []

    def answer(numbers: Sequence[int]) -> list[int]:
        rounds.append(len(numbers))
        return doubled(numbers)

    gathered = Gathered("test_gathered", answer, seconds=seconds, most=most)
    assert [each.get(timeout=10) for each in ask(gathered, 1, 2, 3)] == [2, 4, 6]
    assert max(rounds) <= (most or 3)
    assert gathered.ask(4) == 8


def test_a_round_that_waits_takes_in_who_comes_meanwhile() -> None:
    rounds: list[list[int]] = []

    def answer(numbers: Sequence[int]) -> list[int]:
        rounds.append(list(numbers))
        return doubled(numbers)

    gathered = Gathered("test_gathered", answer, seconds=0.2)
    asked = ask(gathered, 1)
    gevent.sleep(0.02)
    asked += ask(gathered, 2)
    assert [each.get(timeout=10) for each in asked] == [2, 4]
    assert rounds == [[1, 2]]


def test_a_round_begins_when_all_that_can_go_on_have_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idleness, "LONGEST", 60.0)
    rounds: list[list[int]] = []

    def answer(numbers: Sequence[int]) -> list[int]:
        rounds.append(sorted(numbers))
        return doubled(numbers)

    gathered = Gathered("test_gathered", answer)

    def ask_after(turns: int) -> int:
        for _ in range(turns):
            gevent.sleep(0)
        return gathered.ask(turns)

    asked = [gevent.spawn(ask_after, turns) for turns in range(20)]
    assert [each.get(timeout=10) for each in asked] == [2 * turns for turns in range(20)]
    assert rounds == [list(range(20))]


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (lambda numbers: [][numbers[0]], IndexError),
        (lambda numbers: doubled(numbers)[1:], ValueError),
        (lambda numbers: [*doubled(numbers), 0], ValueError),
    ],
    ids=["an error", "an answer too few", "an answer too many"],
)
def test_what_goes_wrong_all_callers_get(answer: Callable[[Sequence[int]], list[int]], raised: type[Exception]) -> None:
    asked = ask(Gathered("test_gathered", answer), 1, 2, 3)
    gevent.joinall(asked, timeout=10)
    assert [type(each.exception) for each in asked] == [raised] * 3


@pytest.mark.parametrize("begun", [False, True])
def test_the_end_of_the_greenlet_that_answers_ends_all_waits(begun: bool) -> None:
    may_answer = Event()

    def answer(numbers: Sequence[int]) -> list[int]:
        may_answer.wait()
        return doubled(numbers)

    gathered = Gathered("test_gathered", answer, most=1)
    asked = ask(gathered, 1, 2)
    gevent.sleep(0)
    if begun:
        gevent.sleep(0)
    assert gathered._worker is not None
    gathered._worker.kill()
    may_answer.set()
    later = ask(gathered, 3)
    gevent.joinall([*asked, *later], timeout=10)
    assert all(each.ready() for each in (*asked, *later))
    assert [each.value if each.successful() else type(each.exception) for each in asked] == (
        [NotAnswered, NotAnswered] if begun else [2, 4]
    )
    assert later[0].value == 6
