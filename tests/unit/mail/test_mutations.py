"""A short run of the random damage that `mutations.py` makes in full: always the same messages."""

from __future__ import annotations

from tests.unit.mail import mutations


def test_damaged_messages_keep_every_promise_and_can_be_inserted(postgres_url: str) -> None:
    accepted = []
    for number, raw in enumerate(mutations.mutated(seed=7, count=2500)):
        message = mutations.check(raw, memory=number % 25 == 0)
        if message is not None:
            accepted.append(message)
    assert len(accepted) > 1000
    mutations.insert(postgres_url, accepted)


def test_damaged_messages_are_the_same_by_shortcut_and_by_the_long_way() -> None:
    for raw in mutations.mutated(seed=8, count=1000):
        mutations.check_both_ways(raw)
