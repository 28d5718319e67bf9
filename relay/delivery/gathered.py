"""What many greenlets ask for at about the same time, done for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import gevent

from relay.core.handoff import Handoff
from relay.core.supervision import run_once

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class Gathered(Generic[_Question, _Answer]):
    """Questions of one kind, one round of them at a time, in a greenlet that goes on when a caller is ended.

    `answer(questions)`: the answers in the same order; what it raises, all callers get. `seconds`: for which a round
    waits for more.
    """

    def __init__(
        self, name: str, answer: Callable[[Sequence[_Question]], Sequence[_Answer]], *, seconds: float = 0.0
    ) -> None:
        """`name`: of the greenlet, in log and metrics."""
        self._name = name
        self._answer = answer
        self._seconds = seconds
        self._waiting: list[tuple[_Question, Handoff[_Answer]]] = []
        self._working = False

    def ask(self, question: _Question) -> _Answer:
        """The answer. Raises what `answer` raised."""
        answered: Handoff[_Answer] = Handoff()
        self._waiting.append((question, answered))
        if not self._working:
            self._working = True
            run_once(self._name, self._work)
        return answered.get()

    def _work(self) -> None:
        try:
            while self._waiting:
                gevent.sleep(self._seconds)
                round_, self._waiting = self._waiting, []
                self._round(round_)
        finally:
            self._working = False
            _fail(self._waiting, RuntimeError("ended"))
            self._waiting = []

    def _round(self, round_: Sequence[tuple[_Question, Handoff[_Answer]]]) -> None:
        try:
            answers = self._answer([question for question, _ in round_])
        except Exception as error:  # noqa: BLE001 - the callers get it
            _fail(round_, error)
        except BaseException:
            _fail(round_, RuntimeError("ended"))
            raise
        else:
            for (_, answered), answer in zip(round_, answers, strict=True):
                answered.set(answer)


def _fail(round_: Sequence[tuple[object, Handoff[_Answer]]], error: Exception) -> None:
    for _, answered in round_:
        answered.fail(error)
