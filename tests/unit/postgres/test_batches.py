"""Questions that are asked together: each gets its own answer, whatever becomes of the others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import gevent
import pytest
from gevent.event import Event

from relay.core.errors import PostgresUnavailable
from relay.postgres.batches import Batches


class Server:
    """Doubles numbers, once it is let; `refuses` says which it takes with no others."""

    def __init__(self, *, refuses: Callable[[int], bool] = lambda _: False, most: int = 100) -> None:
        self.together: list[list[int]] = []
        self.alone: list[int] = []
        self.may_answer = Event()
        self.may_answer.set()
        self.error: BaseException | None = None
        self._refuses = refuses
        self.batches: Batches[int, int] = Batches("test_batches", self._together, self._alone, most=most)

    def _together(self, numbers: Sequence[int]) -> list[int | None]:
        self.together.append(list(numbers))
        self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return [None if self._refuses(number) else 2 * number for number in numbers]

    def _alone(self, number: int) -> int:
        self.alone.append(number)
        if number < 0:
            raise PostgresUnavailable
        return 2 * number

    def ask(self, numbers: Sequence[int]) -> list[gevent.Greenlet[..., int]]:
        return [gevent.spawn(self.batches.ask, number) for number in numbers]


def test_who_asks_at_the_same_time_or_meanwhile_shares_a_question() -> None:
    server = Server()
    server.may_answer.clear()
    first = server.ask([1, 2, 3])
    with gevent.Timeout(10):
        while not server.together:
            gevent.sleep(0.001)
    meanwhile = server.ask([4, 5])
    gevent.sleep(0)
    server.may_answer.set()
    assert [each.get(timeout=10) for each in first + meanwhile] == [2, 4, 6, 8, 10]
    assert server.together == [[1, 2, 3], [4, 5]]
    assert server.alone == []


def test_no_question_has_more_than_it_may() -> None:
    server = Server(most=4)
    assert [each.get(timeout=10) for each in server.ask(range(10))] == [2 * number for number in range(10)]
    assert [len(numbers) for numbers in server.together] == [4, 4, 2]


@pytest.mark.parametrize("error", [PostgresUnavailable(), ValueError("a bug"), gevent.GreenletExit(), KeyError()])
def test_a_question_that_fails_is_asked_for_each(error: BaseException) -> None:
    server = Server()
    server.error = error
    asked = server.ask([1, -2, 3])
    gevent.joinall(asked, timeout=10)
    assert [each.value for each in asked] == [2, None, 6]
    assert isinstance(asked[1].exception, PostgresUnavailable)
    server.error = None
    assert server.batches.ask(4) == 8


def test_a_caller_that_is_killed_stops_no_other() -> None:
    server = Server()
    server.may_answer.clear()
    asked = server.ask([1, 2, 3])
    gevent.sleep(0)
    gevent.sleep(0)
    asked[0].kill()
    server.may_answer.set()
    assert [each.get(timeout=10) for each in asked[1:]] == [4, 6]
    assert server.batches.ask(4) == 8


def test_any_number_of_greenlets_get_their_own_answers() -> None:
    chance = random.Random(1)
    server = Server(refuses=lambda number: number % 7 == 0, most=5)

    def client(number: int) -> int:
        gevent.sleep(chance.random() / 50)
        return server.batches.ask(number)

    asked = [gevent.spawn(client, number) for number in range(300)]
    assert [each.get(timeout=30) for each in asked] == [2 * number for number in range(300)]
    assert sorted(server.alone) == [number for number in range(300) if number % 7 == 0]
    assert max(len(numbers) for numbers in server.together) <= 5
