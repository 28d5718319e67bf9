"""When a second writer is woken; all else is tested on a real server (tests/integration/storage)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import gevent
import pytest
from gevent.event import Event

from relay.core.records import EmailRow
from relay.postgres import group_commit
from relay.postgres.database import Database
from relay.postgres.group_commit import GroupCommit
from relay.postgres.pending_message import PendingMessage


def _message() -> PendingMessage:
    row = EmailRow("1", "u", "a@x.example", ("b@x.example",), (), (), (), "", "", "x", {}, (), ())
    return PendingMessage([row], ["b@x.example"], time.monotonic() + 5)


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
