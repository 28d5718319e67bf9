"""Who may be called now: any course of looks, calls and answers keeps the bounds, and lets the well ones through."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from relay.delivery import webhook_places
from relay.delivery.webhook_places import (
    ENDPOINT_PLACES,
    FAST_PLACES,
    SLOW_PLACES,
    SLOW_SECONDS,
    USER_PLACES,
    WebhookPlaces,
)
from relay.postgres.webhook_deliveries import Due


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def due(webhook: int, *, first: int = 0, count: int = 1, user: str = "user") -> list[Due]:
    return [Due(f"{webhook}-{number}", f"w{webhook}", user) for number in range(first, first + count)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(webhook_places, "time", clock)
    return clock


def test_webhooks_have_their_turns(clock: Clock) -> None:
    places = WebhookPlaces()
    places.add(due(1, count=100))
    places.add(due(2, count=1))
    assert [each.webhook_id for each in places.take()] == ["w1", "w2"]
    assert places.take() == []


def test_an_endpoint_that_answers_soon_gets_more_at_a_time(clock: Clock) -> None:
    places = WebhookPlaces()
    places.add(due(1, count=1000))
    most = 0
    for _ in range(10):
        taken = places.take()
        most = max(most, places.busy)
        for each in taken:
            places.give_back(each.delivery_id, quick=True)
    assert most == ENDPOINT_PLACES


def test_however_many_are_dead_a_well_one_waits_for_a_second_at_most(clock: Clock) -> None:
    places = WebhookPlaces()
    for webhook in range(2, 100):
        places.add(due(webhook, count=50, user=f"user {webhook}"))
    assert len(places.take()) == FAST_PLACES
    places.add(due(1, count=50, user="well"))
    assert places.take() == []
    clock.now += SLOW_SECONDS + 0.1
    # Those that have lasted are no more in its way.
    assert "w1" in {each.webhook_id for each in places.take()}


def test_known_dead_ones_leave_the_fast_places_alone(clock: Clock) -> None:
    places = WebhookPlaces()
    for webhook in range(2, 300):
        places.add(due(webhook, count=100, user=f"user {webhook}"))
    for _ in range(20):  # all of them are tried once, and are silent
        taken = places.take()
        clock.now += 5.0
        for each in taken:
            places.give_back(each.delivery_id, quick=False)
    places.take()
    places.add(due(1, count=50, user="well"))
    assert "w1" in {each.webhook_id for each in places.take()}


def test_one_user_leaves_places_to_others(clock: Clock) -> None:
    places = WebhookPlaces()
    for webhook in range(2, 200):
        places.add(due(webhook, count=10, user="one"))
    assert len(places.take()) == USER_PLACES
    places.add(due(1, user="other"))
    assert [each.webhook_id for each in places.take()] == ["w1"]


class Course(RuleBasedStateMachine):
    """Any order of looks, calls and answers."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self._real, webhook_places.time = webhook_places.time, self.clock  # type: ignore[attr-defined, assignment]
        self.places = WebhookPlaces()
        self.calls: set[str] = set()
        self.number = 0

    def teardown(self) -> None:
        webhook_places.time = self._real  # type: ignore[attr-defined]

    @rule(webhook=st.integers(1, 30), count=st.integers(1, 40), replaces=st.booleans())
    def look(self, webhook: int, count: int, replaces: bool) -> None:
        self.number += 1
        seen = due(webhook, first=self.number * 100, count=count, user=f"user {webhook % 3}")
        # What is being made may be seen once more.
        seen += [Due(each, f"w{each.partition('-')[0]}", "user 0") for each in sorted(self.calls)[:3]]
        (self.places.replace if replaces else self.places.add)(seen)

    @rule()
    def take(self) -> None:
        taken = {each.delivery_id for each in self.places.take()}
        assert not taken & self.calls
        self.calls |= taken

    @rule(quick=st.sampled_from([True, False, None]), share=st.integers(1, 4))
    def answer(self, quick: bool | None, share: int) -> None:
        for delivery_id in sorted(self.calls)[::share]:
            self.places.give_back(delivery_id, quick=quick)
            self.calls.discard(delivery_id)

    @rule(seconds=st.floats(0.01, 3.0))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def bounds_hold(self) -> None:
        calls = self.places._calls
        assert set(calls) == self.calls
        fast = [call for call in calls.values() if call.fast]
        assert len(fast) <= FAST_PLACES
        assert len(calls) - len(fast) <= SLOW_PLACES
        for webhook in {call.due.webhook_id for call in calls.values()}:
            assert sum(call.due.webhook_id == webhook for call in calls.values()) <= ENDPOINT_PLACES
        for user in {call.due.user_id for call in fast}:
            assert sum(call.due.user_id == user for call in fast) <= USER_PLACES

    @invariant()
    def nothing_waits_while_there_is_room(self) -> None:
        if not self.calls and len(self.places):
            self.take()
            assert self.calls


TestCourse = Course.TestCase
TestCourse.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
