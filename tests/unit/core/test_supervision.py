"""Greenlets that run for long begin again, whatever ended them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from relay.core import metrics, supervision
from relay.core.supervision import RUNNING, Supervised, run_once, supervise

ROOT = Path(__file__).resolve().parents[3]


class Unforeseen(BaseException):
    """No Exception: nothing that catches errors knows it."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Supervised, "first_pause", 0.001)
    before = set(RUNNING)
    yield
    for made in set(RUNNING) - before:
        made.stop()


class Loop:
    """Work that waits for orders, and counts how often it began."""

    def __init__(self) -> None:
        self.begun = 0
        self._wake = Event()
        self._order: BaseException | None = None

    def run(self) -> None:
        self.begun += 1
        self._wake.wait()
        self._wake.clear()
        if self._order is not None:
            raise self._order

    def end(self, error: BaseException | None) -> None:
        """Has the work raise, or return."""
        self._order = error
        self._wake.set()


def until(condition: Callable[[], bool]) -> None:
    with gevent.Timeout(20):
        while not condition():
            gevent.sleep(0.001)


def failures(name: str) -> int:
    return metrics.GREENLET_FAILURES.labels(name).value


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda loop, made: loop.end(ZeroDivisionError()), id="raises"),
        pytest.param(lambda loop, made: loop.end(Unforeseen()), id="raises-no-exception"),
        pytest.param(lambda loop, made: loop.end(gevent.Timeout(1)), id="a-time-limit-of-others"),
        pytest.param(lambda loop, made: loop.end(None), id="returns"),
        pytest.param(lambda loop, made: made.greenlet.kill(ZeroDivisionError), id="thrown-into"),
        pytest.param(lambda loop, made: made.greenlet.kill(), id="killed-by-somebody"),
    ],
)
def test_whatever_ends_it_it_begins_again(end: Callable[[Loop, Supervised], object]) -> None:
    loop = Loop()
    before = failures("test")
    made = supervise("test", loop.run)
    until(lambda: loop.begun == 1)
    assert metrics.GREENLETS.labels("test").value == 1
    end(loop, made)
    until(lambda: loop.begun == 2)
    assert failures("test") == before + 1
    assert made in RUNNING
    assert not made.over


def test_an_error_before_the_first_step_is_no_end_either() -> None:
    loop = Loop()
    made = supervise("test", loop.run)
    made.greenlet.throw(ZeroDivisionError)
    assert loop.begun == 0
    until(lambda: loop.begun == 1)


def test_what_was_stopped_stays_so() -> None:
    loop = Loop()
    made = supervise("test", loop.run)
    until(lambda: loop.begun == 1)
    made.stop()
    gevent.sleep(0.02)
    assert (loop.begun, made.over, made in RUNNING) == (1, True, False)
    assert metrics.GREENLETS.labels("test").value == 0


def test_what_is_stopped_in_its_pause_does_not_begin_again() -> None:
    loop = Loop()
    made = supervise("test", loop.run)
    until(lambda: loop.begun == 1)
    made.greenlet.kill(ZeroDivisionError, block=True)
    made.stop()
    gevent.sleep(0.02)
    assert loop.begun == 1


def test_work_that_may_end_is_done_when_it_returns_but_not_when_it_fails() -> None:
    loop = Loop()
    made = supervise("test", loop.run, ends=True)
    until(lambda: loop.begun == 1)
    made.greenlet.kill(ZeroDivisionError)
    until(lambda: loop.begun == 2)
    loop.end(None)
    until(lambda: made.over)
    until(lambda: made not in RUNNING)
    assert loop.begun == 2


def test_it_can_stop_itself() -> None:
    begun = []

    def work() -> None:
        begun.append(1)
        gevent.sleep(0)
        made.stop()

    made = supervise("test", work)
    until(lambda: made.over)
    gevent.sleep(0.02)
    assert begun == [1]


def test_pauses_grow_to_their_bound_and_shrink_once_it_was_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(supervision.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(Supervised, "first_pause", 1.0)
    real = Supervised._begin

    def begin(self: Supervised, pause: float) -> gevent.Greenlet[..., None]:
        pauses.append(pause)
        return real(self, 0.0)

    monkeypatch.setattr(Supervised, "_begin", begin)
    loop = Loop()
    made = supervise("test", loop.run, longest_pause=5.0)
    for number in range(1, 6):
        until(lambda number=number: loop.begun == number)  # type: ignore[misc]
        made.greenlet.kill(ZeroDivisionError)
    until(lambda: loop.begun == 6)
    assert pauses == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]
    monkeypatch.setattr(Supervised, "well_after", 0.0)
    made.greenlet.kill(ZeroDivisionError)
    until(lambda: loop.begun == 7)
    assert pauses[-1] == 1.0


def test_a_failure_of_work_that_runs_once_is_counted() -> None:
    before = failures("once")
    run_once("once", lambda: 1 / 0).join()
    assert failures("once") == before + 1
    done: list[int] = []
    run_once("once", done.append, 3, after=0.001).join()
    assert (done, failures("once")) == ([3], before + 1)


_STARTERS = {"spawn", "spawn_later", "spawn_raw", "start_later", "apply_async", "map_async", "imap", "imap_unordered"}


def test_greenlets_are_started_in_one_module_alone() -> None:
    """A module that starts one by other means has to be named here: gevent's servers, which watch sockets, do not."""
    found = []
    # What an operator runs is a separate program; a worker's metrics are not.
    programs = {path for path in (ROOT / "relay" / "operator").glob("*.py") if path.name != "exposition.py"}
    for path in sorted({*(ROOT / "relay").rglob("*.py"), *(ROOT / "config").rglob("*.py")} - programs):
        if path.name == "supervision.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None) or ""
            if isinstance(node, ast.alias):
                name = node.name.rpartition(".")[2]
            made = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "Greenlet"
            if made or name in _STARTERS or name in {"Pool", "Group", "ThreadPool", "Thread"}:
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {name}")
    assert found == []
