"""Digests of addresses, and how lists are cut into commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from relay.redis.protocol import Command
from relay.redis.suppression_lists import BUCKET_SIZE, ListWriter, digest, digest_prefix

words = st.text(alphabet="ab@\0", max_size=4)


@given(words, words, words, words)
def test_addresses_of_two_users_never_share_a_digest(user: str, email: str, other_user: str, other_email: str) -> None:
    one = digest(digest_prefix(user), email)
    two = digest(digest_prefix(other_user), other_email)
    assert (one == two) == ((user, email) == (other_user, other_email))
    assert len(one) == 16


class Recorder:
    """An outbox that keeps what it is given."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.settled: list[int] = []

    def put(self, command: Command, then: Callable[[Any], None] | None = None) -> None:
        self.commands.append(command)

    def settle(self) -> None:
        self.settled.append(len(self.commands))


def written(count: int) -> Recorder:
    recorder = Recorder()
    writer = ListWriter(recorder, "user", count, 60)
    writer.add([f"{number}@x" for number in range(count)])
    writer.finish()
    return recorder


def test_a_short_list_is_one_command() -> None:
    assert len(written(0).commands) == 1
    assert len(written(BUCKET_SIZE).commands) == 1


def test_the_marker_of_a_long_list_waits_for_everything_before_it() -> None:
    recorder = written(10_000)
    assert recorder.commands[-1][0] == "SET"
    assert recorder.settled == [len(recorder.commands) - 1]


def test_no_command_keeps_redis_busy_for_long() -> None:
    assert max(len(part) for command in written(10_000).commands for part in command if isinstance(part, bytes)) <= 8000


def test_an_abandoned_list_never_gets_a_marker() -> None:
    recorder = Recorder()
    writer = ListWriter(recorder, "user", 1000, 60)
    writer.add([f"{number}@x" for number in range(1000)])
    writer.abandon()
    assert all(command[0] == "EVALSHA" for command in recorder.commands)
