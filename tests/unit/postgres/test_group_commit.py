"""When a second writer is woken, and how much time a batch has.

All else is tested on a real server (tests/integration/storage).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import gevent
import pytest
from gevent.event import Event

from relay.core.errors import PostgresUnavailable
from relay.core.records import EmailRow
from relay.postgres import group_commit
from relay.postgres.database import ConnectionLost, Database
from relay.postgres.group_commit import GroupCommit
from relay.postgres.pending_message import PendingMessage


def _message(seconds: float = 5.0) -> PendingMessage:
    row = EmailRow("1", "u", "a@x.example", ("b@x.example",), (), (), (), "", "", "x", {}, (), ())
    return PendingMessage([row], ["b@x.example"], time.monotonic() + seconds)


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCommit]:
    """Two writers, of which one is busy for ever and one is idle; there is no database."""
    monkeypatch.setattr(GroupCommit, "_write", lambda self: Event().wait())
    commit = GroupCommit(cast("Database", None), writers=2, max_rows=10, max_bytes=1_000, alone=1)
    commit._idle = [Event()]
    yield commit
    commit.close()


def test_while_one_writer_is_busy_the_look_after_those_who_wait_is_no_busy_loop(
    commit: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = GroupCommit._look_after_waiting

    def counted(self: GroupCommit, alarm: object) -> None:
        nonlocal looks
        looks += 1
        look(self, alarm)

    monkeypatch.setattr(GroupCommit, "_look_after_waiting", counted)
    commit._busy_since = time.monotonic() + 3600
    began = time.monotonic()
    waiting = gevent.spawn(commit.commit, _message())
    for _ in range(3):
        gevent.sleep(2 * group_commit._TOO_LONG_SECONDS)
        assert 1 <= looks <= (time.monotonic() - began) / group_commit._TOO_LONG_SECONDS + 1
    # No message waits any more: it ends by itself, and begins again with the next.
    commit._waiting.clear()
    gevent.sleep(2 * group_commit._TOO_LONG_SECONDS)
    at_rest = looks
    gevent.sleep(2 * group_commit._TOO_LONG_SECONDS)
    assert looks == at_rest
    again = gevent.spawn(commit.commit, _message())
    gevent.sleep(2 * group_commit._TOO_LONG_SECONDS)
    assert looks > at_rest
    gevent.killall([waiting, again])


def test_a_writer_that_takes_long_gets_help_for_those_who_came_behind_it(commit: GroupCommit) -> None:
    (idle,) = commit._idle
    commit._busy_since = time.monotonic()
    waiting = gevent.spawn(commit.commit, _message())
    gevent.sleep(0)
    assert not idle.is_set()
    assert idle.wait(timeout=10 * group_commit._TOO_LONG_SECONDS)
    waiting.kill()


def test_what_is_larger_than_a_batch_is_one_by_itself(commit: GroupCommit) -> None:
    messages = [_message() for _ in range(5)]
    size = len(messages[0].payload)
    commit._max_bytes = 2 * size + 1
    messages[1].payload = messages[4].payload = bytes(3 * size)
    commit._waiting.extend(messages)
    assert [commit._take() for _ in range(5)] == [messages[:1], messages[1:2], messages[2:4], messages[4:], []]


class _SilentServer:
    """In place of a writer's connection: each step takes all of the time that it is given, and then fails."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []

    def connect(self, deadline: float) -> None:
        self.deadlines.append(deadline)
        raise ConnectionLost(unclear=False)

    reconnect = connect


class _NoPause:
    """In place of the database: all that a batch asks of it is how long to wait before the second try."""

    def await_retry(self) -> None:
        pass


@pytest.mark.parametrize("latest", [0, 1, 2])
def test_a_batch_ends_before_the_time_of_each_of_its_messages(commit: GroupCommit, latest: int) -> None:
    session = _SilentServer()
    commit._database = cast("Database", _NoPause())
    batch = [_message(100.0 if number == latest else 2.0) for number in range(3)]
    commit._store(cast("group_commit._WriterConnection", session), batch)
    assert len(session.deadlines) == 2
    assert max(session.deadlines) <= min(message.deadline for message in batch)
    for message in batch:
        with pytest.raises(PostgresUnavailable):
            message.done.get()


def test_a_message_whose_time_is_over_before_its_batch_begins_is_not_stored_for_certain(commit: GroupCommit) -> None:
    late, in_time = _message(group_commit._LEAST_SECONDS / 2), _message(100.0)
    commit._database = cast("Database", _NoPause())
    for batch in ([late], [late.again(), in_time]):
        commit._store(cast("group_commit._WriterConnection", _SilentServer()), batch)
        with pytest.raises(PostgresUnavailable) as given_up:
            batch[0].done.get()
        assert not given_up.value.unclear
