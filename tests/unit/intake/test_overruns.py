"""Keys that are kept out, and messages that come again: counted within bounds, and forgotten in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.intake.overruns import KeyOverruns, MessageOverruns


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_three_overruns_within_a_minute_keep_a_key_out_for_ten_minutes() -> None:
    clock = Clock()
    overruns = KeyOverruns(clock)
    assert [overruns.note("a"), overruns.note("a")] == [False, False]
    assert not overruns.keeps_out("a")
    assert overruns.note("a")
    assert overruns.keeps_out("a")
    assert not overruns.keeps_out("b")
    clock.now += 599
    assert overruns.keeps_out("a")
    clock.now += 2
    assert not overruns.keeps_out("a")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 90)), max_size=60))
def test_a_key_is_kept_out_exactly_when_its_last_three_came_within_a_minute(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    overruns = KeyOverruns(clock)
    times: dict[str, list[float]] = {"a": [], "b": []}
    until: dict[str, float] = {}
    for key, pause in steps:
        clock.now += pause
        times[key].append(clock.now)
        out = len(times[key]) >= 3 and times[key][-1] - times[key][-3] <= 60
        if out:
            until[key] = clock.now + 600
        assert overruns.note(key) is out
        for each in "ab":
            assert overruns.keeps_out(each) is (clock.now < until.get(each, 0))


def test_keys_are_bounded() -> None:
    overruns = KeyOverruns()
    for number in range(3000):
        for _ in range(3):
            overruns.note(f"key-{number}")
    assert len(overruns._times) == len(overruns._out) == 1000
    assert overruns.keeps_out("key-2999")
    assert not overruns.keeps_out("key-0")


def test_a_message_is_known_by_its_user_size_and_octets() -> None:
    clock = Clock()
    overruns = MessageOverruns(clock)
    assert not overruns.suspects("u", 10)
    overruns.note("u", 10, b"x")
    assert overruns.suspects("u", 10)
    assert not overruns.suspects("v", 10)
    assert not overruns.suspects("u", 11)
    assert [overruns.times("u", 10, b"x"), overruns.times("u", 10, b"y"), overruns.times("v", 10, b"x")] == [1, 0, 0]
    overruns.note("u", 10, b"y")
    overruns.note("u", 10, b"x")
    assert [overruns.times("u", 10, b"x"), overruns.times("u", 10, b"y")] == [2, 1]
    clock.now += 8 * 86_400
    assert overruns.times("u", 10, b"x") == 0


def test_messages_are_bounded_and_the_oldest_is_forgotten() -> None:
    overruns = MessageOverruns()
    for number in range(2000):
        overruns.note("u", number // 2, b"%d" % number)
    assert overruns.times("u", 0, b"0") == 0
    assert overruns.times("u", 999, b"1999") == 1
    assert sum(map(len, overruns._known.values())) == 1000
