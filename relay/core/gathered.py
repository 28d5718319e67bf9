"""What many greenlets ask for at about the same time, done for all of them at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import gevent

from relay.core.handoff import Handoff
from relay.core.idleness import await_idle
from relay.core.supervision import run_once

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class NotAnswered(Exception):
    """The greenlet that was to answer was ended."""


class Gathered(Generic[_Question, _Answer]):
    """Questions of one kind, one round of them at a time, in a greenlet that goes on when a caller is ended.

    `answer(questions)`: the answers in the same order; what it raises, all callers of the round get. `seconds`: for
    which a round waits for more; None: until those that can go on have asked as well (`relay.core.idleness`). Callers
    that ask during a round share the next one. `most`: questions of one round; None: any number.
    """

    def __init__(
        self,
        name: str,
        answer: Callable[[Sequence[_Question]], Sequence[_Answer]],
        *,
        seconds: float | None = None,
        most: int | None = None,
    ) -> None:
        """`name`: of the greenlet, in log and metrics."""
        self._name = name
        self._answer = answer
        self._seconds = seconds
        self._most = most
        self._waiting: deque[tuple[_Question, Handoff[_Answer]]] = deque()
        self._working = False
        self._worker: gevent.Greenlet[..., None] | None = None

    def ask(self, question: _Question) -> _Answer:
        """The answer. Raises what `answer` raised, and NotAnswered."""
        answered: Handoff[_Answer] = Handoff()
        self._waiting.append((question, answered))
        # One that was ended before it began has left its mark behind.
        if not self._working or self._worker is None or self._worker.dead:
            self._working = True
            self._worker = run_once(self._name, self._work)
        return answered.get()

    def _work(self) -> None:
        """Until nothing waits."""
        try:
            while self._waiting:
                if self._seconds is None:
                    await_idle()
                else:
                    gevent.sleep(self._seconds)
                count = len(self._waiting) if self._most is None else min(self._most, len(self._waiting))
                self._round([self._waiting.popleft() for _ in range(count)])
        finally:
            # Whatever ended it: no caller is left to wait for a greenlet that is gone.
            self._working = False
            _fail(self._waiting, NotAnswered())
            self._waiting.clear()

    def _round(self, round_: Sequence[tuple[_Question, Handoff[_Answer]]]) -> None:
        try:
            answers = self._answer([question for question, _ in round_])
            settled = list(zip(round_, answers, strict=True))
        except Exception as error:  # noqa: BLE001 - the callers get it
            _fail(round_, error)
        except BaseException:
            _fail(round_, NotAnswered())
            raise
        else:
            for (_, answered), answer in settled:
                answered.set(answer)


def _fail(round_: Sequence[tuple[object, Handoff[_Answer]]], error: Exception) -> None:
    for _, answered in round_:
        answered.fail(error)
