"""Whose turn it is, and what is kept of it, against a model that keeps everything."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import backlog as backlog_module
from relay.delivery.backlog import Backlog
from relay.postgres.waiting import Waiting


def row(number: int, user: str | None = "user", *, due_in: float = 0.0, octets: int = 1000) -> Waiting:
    return Waiting(f"{number:032x}", user, float(number), due_in, False, 0.0, octets)


def take(backlog: Backlog, most: int, busy: dict[str | None, int] | None = None, share: int = 10**6) -> list[Waiting]:
    return backlog.take(most, 10**9, busy or {}, share)


@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.sampled_from("abcd")), max_size=60),
    steps=st.lists(st.integers(1, 7), max_size=20),
    share=st.integers(1, 4),
)
def test_each_row_leaves_once_in_turn_and_no_user_gets_more_than_a_share(
    rows: list[tuple[int, str]], steps: list[int], share: int
) -> None:
    backlog = Backlog()
    left: dict[str, list[Waiting]] = {}
    known: set[str] = set()
    for number, user in rows:
        backlog.add([row(number, user)])
        if row(number).email_id not in known:
            known.add(row(number).email_id)
            heapq.heappush(left.setdefault(user, []), row(number, user))
    busy: Counter[str | None] = Counter()
    for most in steps:
        taken = take(backlog, most, busy, share)
        for each in taken:
            assert each.user_id is not None
            oldest = min(left[each.user_id], key=lambda row: row.created)
            assert each == oldest
            left[each.user_id].remove(oldest)
        busy.update(each.user_id for each in taken)
        assert max(busy.values(), default=0) <= share
        wanting = [user for user, waiting in left.items() if waiting and busy[user] < share]
        assert len(taken) == most or not wanting
        assert backlog.offers(busy, share) == bool(wanting)
        # Who had a row all the time got as many as any other, but for one.
        counts = Counter(each.user_id for each in taken)
        for user in wanting:
            assert counts[user] + 1 >= max(counts.values(), default=0)
        if random.random() < 0.5:
            busy.clear()
    assert len(backlog) == sum(map(len, left.values()))


def test_a_user_who_comes_is_served_before_those_who_have_been() -> None:
    backlog = Backlog()
    backlog.add(row(number, "many") for number in range(100))
    assert {each.user_id for each in take(backlog, 5)} == {"many"}
    backlog.add([row(1000, "few")])
    assert "few" in {each.user_id for each in take(backlog, 2)}


def test_what_is_kept_is_bounded_and_keeps_each_users_oldest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "OF_ONE", 50)
    monkeypatch.setattr(backlog_module, "OF_ALL", 200)
    monkeypatch.setattr(backlog_module, "LATER", 100)
    generator = random.Random(1)
    backlog = Backlog()
    numbers = list(range(20_000))
    generator.shuffle(numbers)
    for number in numbers:
        user = generator.choice(["many"] * 50 + [str(number % 300)])
        backlog.add([row(number, user, due_in=generator.choice((0.0, 0.0, 500.0)))])
        assert len(backlog) <= 2 * 200
        assert len(backlog._known) <= 2 * 200 + 100
    by_user: dict[str | None, list[float]] = {}
    for each in take(backlog, 10**6):
        by_user.setdefault(each.user_id, []).append(each.created)
    assert by_user["many"] == sorted(by_user["many"])
    assert min(by_user["many"]) < 100


def test_a_user_who_comes_finds_room_where_another_has_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "OF_ONE", 1000)
    monkeypatch.setattr(backlog_module, "OF_ALL", 100)
    backlog = Backlog()
    backlog.add(row(number, "many") for number in range(100))
    backlog.add([row(1000, "few")])
    assert "few" in {each.user_id for each in take(backlog, 2)}


def test_users_without_number_are_looked_through_seldom_to_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look through thousands of them for each row that comes would take a process most of its time."""
    monkeypatch.setattr(backlog_module, "OF_ALL", 1000)
    backlog = Backlog()
    backlog.add(row(number, f"user {number // 2}") for number in range(1000))
    looks = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return max(*arguments, **named)

    monkeypatch.setattr(backlog_module, "max", counted, raising=False)
    backlog.add(row(number, f"new {number}") for number in range(1000, 1400))
    assert looks < 20
    assert len({each.user_id for each in take(backlog, 1000)}) == 900


def test_what_is_due_later_comes_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(backlog_module.time, "monotonic", lambda: now)
    backlog = Backlog()
    dues = [5.0, 1.0, 3.0, backlog_module.SOON + 1.0, float("inf")]
    backlog.add(row(number, due_in=due) for number, due in enumerate(dues))
    backlog.add(row(number, due_in=due) for number, due in enumerate(dues))  # it is seen again meanwhile
    assert (len(backlog), backlog.next_due()) == (0, 1.0)
    now += 3.0
    backlog.ripen()
    assert [each.created for each in take(backlog, 10)] == [1.0, 2.0]
    now += 5000.0
    backlog.ripen()
    assert [each.created for each in take(backlog, 10)] == [0.0]
    assert backlog.next_due() == float("inf")


def test_large_rows_are_not_claimed_together() -> None:
    backlog = Backlog()
    backlog.add(row(number, octets=40_000_000) for number in range(3))
    backlog.add(row(number + 10, "other", octets=10) for number in range(3))
    sizes = []
    while taken := backlog.take(20, 4_000_000, {}, 100):
        sizes.append([each.octets for each in taken])
    assert sum(map(len, sizes)) == 6
    assert all(sum(claim) <= 4_000_000 or len(claim) == 1 for claim in sizes)


@pytest.mark.parametrize("seed", range(4))
def test_rows_without_room_are_not_taken_in_each_time_they_are_seen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All leave, each user's oldest first, however often and in which order they are seen."""
    monkeypatch.setattr(backlog_module, "OF_ONE", 50)
    monkeypatch.setattr(backlog_module, "ENOUGH", 20)
    pushes = 0
    push = heapq.heappush

    def counted(heap: list[tuple[float, str, Waiting]], entry: tuple[float, str, Waiting]) -> None:
        nonlocal pushes
        pushes += 1
        push(heap, entry)

    monkeypatch.setattr(backlog_module.heapq, "heappush", counted)
    generator = random.Random(seed)
    rows = [row(number, generator.choice(["many", "many", "many", "few"])) for number in range(1_000)]
    waiting = {each.email_id: each for each in rows}
    backlog = Backlog()
    left: dict[str | None, list[float]] = {"many": [], "few": []}
    while waiting:
        # A search from the oldest on, and a look at the newest.
        backlog.add(waiting.values())
        backlog.add(list(waiting.values())[-30:][::-1])
        taken = take(backlog, generator.randrange(1, 12))
        assert taken
        for each in taken:
            del waiting[each.email_id]
            left[each.user_id].append(each.created)
    assert all(numbers == sorted(numbers) for numbers in left.values())
    assert sum(map(len, left.values())) == len(rows)
    assert pushes <= 2 * len(rows)


def test_without_room_older_rows_come_in_and_newer_ones_when_few_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "OF_ONE", 50)
    monkeypatch.setattr(backlog_module, "ENOUGH", 20)
    backlog = Backlog()
    backlog.add(row(number) for number in range(100, 150))
    backlog.add([row(200)])
    assert len(backlog) == 50
    backlog.add([row(1)])
    assert [each.created for each in take(backlog, 1)] == [1.0]
    take(backlog, len(backlog) - 19)
    backlog.add(row(number) for number in range(200, 260))
    assert len(backlog) == 50
