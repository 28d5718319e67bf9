"""Who held up others goes alone for a while: longer each time it happens again soon, and never for good."""

from __future__ import annotations

from relay.postgres import slow_users
from relay.postgres.slow_users import SlowUsers
from tests.support.clock import Clock


def alone_for(users: SlowUsers, clock: Clock) -> float:
    """Notes the user once: seconds until its messages go with others again."""
    users.note("slow")
    began = clock.now
    while users.holds("slow"):
        clock.now += 0.25
    return clock.now - began


def test_each_time_it_happens_again_soon_he_goes_alone_for_longer(clock: Clock) -> None:
    users = SlowUsers()
    assert not users.holds("slow")
    assert [alone_for(users, clock) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not users.holds("other")


def test_after_a_while_it_is_forgotten_how_often(clock: Clock) -> None:
    users = SlowUsers()
    for _ in range(4):
        alone_for(users, clock)
    clock.now += 60.0
    assert alone_for(users, clock) == 1


def test_messages_of_one_moment_count_once(clock: Clock) -> None:
    users = SlowUsers()
    for _ in range(50):
        users.note("slow")
    clock.now += 1.0
    assert not users.holds("slow")


def test_memory_is_bounded_and_the_first_is_forgotten(clock: Clock) -> None:
    users = SlowUsers()
    for number in range(slow_users._MOST_USERS + 1):
        users.note(str(number))
    assert [users.holds(str(number)) for number in (0, 1, slow_users._MOST_USERS)] == [False, True, True]
