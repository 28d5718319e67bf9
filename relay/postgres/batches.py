"""What many greenlets ask of Postgres at about the same time, in one statement.

No caller waits for others: the first statement begins at once, and callers that ask while it runs share the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import gevent
import structlog

from relay.core.errors import PostgresUnavailable
from relay.core.handoff import Handoff
from relay.core.supervision import run_once

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")
log = structlog.get_logger(__name__)


class Batches(Generic[_Question, _Answer]):
    """Questions of one kind. A question that can't be answered with others, for whatever reason, is asked alone.

    `together(questions)`: answers in the same order, None for one that is to be asked alone; it must end by itself,
    soon, and may raise PostgresUnavailable: then all are asked alone. `alone(question)`: called in the greenlet that
    asks, where it may take its time. Both must be harmless to repeat. `most`: questions of one statement.
    """

    def __init__(
        self,
        name: str,
        together: Callable[[Sequence[_Question]], Sequence[_Answer | None]],
        alone: Callable[[_Question], _Answer],
        *,
        most: int,
    ) -> None:
        """`name`: of the greenlet, in log and metrics."""
        self._name = name
        self._together = together
        self._alone = alone
        self._most = most
        self._waiting: deque[tuple[_Question, Handoff[_Answer | None]]] = deque()
        self._working = False
        self._worker: gevent.Greenlet[..., None] | None = None

    def ask(self, question: _Question) -> _Answer:
        """The answer. Raises what `alone` raises."""
        answered: Handoff[_Answer | None] = Handoff()
        self._waiting.append((question, answered))
        if not self._working or self._worker is None or self._worker.dead:
            self._working = True
            self._worker = run_once(self._name, self._work)
        answer = answered.get()
        return self._alone(question) if answer is None else answer

    def _work(self) -> None:
        """Until nothing waits. It is a separate greenlet, so that the end of one caller ends no other."""
        try:
            while self._waiting:
                self._answer([self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))])
        finally:
            # Whatever ended it: no caller is left to wait for a greenlet that is gone.
            self._working = False
            while self._waiting:
                self._waiting.popleft()[1].set(None)

    def _answer(self, batch: Sequence[tuple[_Question, Handoff[_Answer | None]]]) -> None:
        answers: Sequence[_Answer | None] = [None] * len(batch)
        try:
            answers = self._together([question for question, _ in batch])
        except PostgresUnavailable:
            pass  # each finds out for itself
        except Exception:
            log.exception("unexpected_error")
        finally:
            for (_, answered), answer in zip(batch, answers, strict=True):
                answered.set(answer)
