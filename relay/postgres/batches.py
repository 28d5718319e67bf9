"""What many greenlets ask of Postgres at about the same time, in one statement.

Callers that ask while a statement runs share the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from relay.core.gathered import Gathered, NotAnswered
from relay.postgres.halving import in_halves

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


class Batches(Generic[_Question, _Answer]):
    """Questions of one kind. A question that can't be answered with others, for whatever reason, is asked alone.

    `together(questions)`: answers in the same order, None for one that is to be asked alone; it must end by itself,
    soon. What it raises is taken as `in_halves` says: a question that is refused stays alone, the others go together.
    `alone(question)`: called in the greenlet that asks, where it may take its time. Both must be harmless to repeat.
    `most`: questions of one statement. `seconds`: for which a statement waits for more; None: see `Gathered`.
    """

    def __init__(
        self,
        name: str,
        together: Callable[[Sequence[_Question]], Sequence[_Answer | None]],
        alone: Callable[[_Question], _Answer],
        *,
        most: int,
        seconds: float | None = None,
    ) -> None:
        """`name`: of the greenlet, in log and metrics."""
        self._together = together
        self._alone = alone
        self._gathered: Gathered[_Question, _Answer | None] = Gathered(name, self._answers, most=most, seconds=seconds)

    def ask(self, question: _Question) -> _Answer:
        """The answer. Raises what `alone` raises."""
        try:
            answer = self._gathered.ask(question)
        except NotAnswered:
            answer = None
        return self._alone(question) if answer is None else answer

    def _answers(self, questions: Sequence[_Question]) -> Sequence[_Answer | None]:
        return in_halves(questions, self._together)
