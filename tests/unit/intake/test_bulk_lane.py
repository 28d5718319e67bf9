"""Turns in the lane for large messages. Its child is a double that waits; test_bulk.py has real ones."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from config.settings import RecipientRule
from relay.core.records import ApiKey
from relay.intake import footprint
from relay.intake.bulk_lane import BulkLane
from relay.intake.bulk_protocol import CHILD, Started, encode_report, receive_request, send_message
from relay.smtp import replies
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict


class Lane(BulkLane):
    """Its children wait until the test lets them go on."""

    def __init__(self, budget: int) -> None:
        super().__init__([], budget, lambda: None)
        self.inside: list[str] = []
        self.most = 0
        self.go = Event()

    def _in_child(self, submission: Submission, _reading: Any, _uses: Callable[[int], None]) -> Any:
        user = submission.login.key.user_id
        self.inside.append(user)
        self.most = max(self.most, len(self.inside))
        self.go.wait()
        self.inside.remove(user)
        return Verdict(replies.TRY_LATER, "done"), SimpleNamespace(channel=SimpleNamespace(close=lambda: None))


def submission(user_id: str) -> Submission:
    body = Body(0)
    body.write(b"x" * 1000)
    login = Login("hash", ApiKey("key", user_id, "full_access", None))
    return Submission(login, ("to@x.example",), RecipientRule.MERGE, body, "test")


@pytest.fixture
def lane() -> Lane:
    return Lane(10_000_000_000)


def test_of_one_user_so_many_and_others_pass_them(lane: Lane) -> None:
    many = [gevent.spawn(lane.store, submission("many")) for _ in range(30)]
    gevent.sleep(0.01)
    others = [gevent.spawn(lane.store, submission(f"user-{number}")) for number in range(3)]
    gevent.sleep(0.01)
    assert sorted(lane.inside) == ["many"] * 4 + ["user-0", "user-1", "user-2"]
    lane.go.set()
    gevent.joinall([*many, *others], raise_error=True, timeout=30)
    assert {greenlet.value.outcome for greenlet in (*many, *others)} == {"done"}
    assert lane.inside == []


def test_who_finds_the_memory_used_up_waits_for_a_turn() -> None:
    lane = Lane(40_000_000)
    waiting = [gevent.spawn(lane.store, submission(f"user-{number}")) for number in range(6)]
    gevent.sleep(0.01)
    assert len(lane.inside) == 2
    lane.go.set()
    gevent.joinall(waiting, raise_error=True, timeout=30)
    assert {greenlet.value.outcome for greenlet in waiting} == {"done"}
    assert lane.most == 2


def test_a_caller_without_a_turn_in_time_gets_an_error_and_takes_nothing(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.intake.bulk_lane.TURN_SECONDS", 0.05)
    first = [gevent.spawn(lane.store, submission("many")) for _ in range(4)]
    gevent.sleep(0.01)
    verdict = lane.store(submission("many"))
    assert (verdict.reply, verdict.outcome) == (replies.NO_ROOM, "no_turn")
    lane.go.set()
    gevent.joinall(first, raise_error=True, timeout=30)
    assert lane.store(submission("many")).outcome == "done"


def test_without_memory_there_is_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane(40_000_000)
    first = [gevent.spawn(lane.store, submission(f"user-{number}")) for number in range(2)]
    gevent.sleep(0.01)
    monkeypatch.setattr("relay.intake.bulk_lane.TURN_SECONDS", 0.05)
    assert lane.store(submission("late")).outcome == "no_turn"
    assert lane.most == 2
    lane.go.set()
    gevent.joinall(first, raise_error=True, timeout=30)


class Process:
    """A double of the process for large messages. Threads answer for each of its children."""

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.children = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            order, descriptors, _, _ = socket.recv_fds(self._theirs, 1, 1)
            if order == CHILD:
                self.children += 1
                threading.Thread(target=self._answer, args=(descriptors[0],), daemon=True).start()
            elif not order:
                return

    @staticmethod
    def _answer(descriptor: int) -> None:
        with socket.socket(fileno=descriptor) as child:
            while (received := receive_request(child)) is not None:
                os.close(received[1])
                send_message(child, encode_report(Started()))
                send_message(child, encode_report(Verdict(replies.queued("id"), "queued")))


def test_free_children_of_a_process_that_is_given_up_are_not_asked_again() -> None:
    """As when another child of it did not begin."""
    first, second = Process(), Process()
    lane = BulkLane([first.ours.detach(), second.ours.detach()], 1_000_000_000, lambda: None)
    assert [lane.store(submission("a")).outcome for _ in range(2)] == ["queued"] * 2
    assert (first.children, second.children) == (1, 0)
    lane._give_up(lane._channels[0])
    assert lane.store(submission("a")).outcome == "queued"
    assert (first.children, second.children) == (1, 1)
    assert lane._budget.has(1_000_000_000 - footprint.CHILD_OCTETS)
    assert not lane._budget.has(1_000_000_000)
    lane.close()
    assert lane._budget.has(1_000_000_000)
