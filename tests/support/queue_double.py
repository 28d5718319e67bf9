"""A queue whose calls fail as a test says: no real one fails at a chosen call, or loses the answer to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from gevent.event import Event

from relay.core.errors import QueueUnavailable

LOST = QueueUnavailable("timed out", unclear=True)
REFUSED = QueueUnavailable("ServiceUnavailable")


class QueueDouble:
    """Takes what it is sent; `answers` say what becomes of the next calls of each kind, None is a good answer."""

    fifo = False

    def __init__(self) -> None:
        self.answers: list[Exception | None] = []
        self.probe_answers: list[Exception | None] = []
        #: What was asked: the ids of the jobs of a call, or "probe".
        self.calls: list[tuple[str, ...] | str] = []
        self.taken: Counter[str] = Counter()
        self.refuses: set[str] = set()
        self.gate: Event | None = None

    def send(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        ids = tuple(entry["Id"].partition("_")[2] for entry in entries)
        self.calls.append(ids)
        if self.gate is not None:
            self.gate.wait()
        answer = self.answers.pop(0) if self.answers else None
        if answer is None or getattr(answer, "unclear", False):
            self.taken.update(each for each in ids if each not in self.refuses)
        if answer is not None:
            raise copy(answer)  # the sender sets what it knows of it, and other calls have the same answer
        return {entry["Id"]: "InternalError" for entry in entries if entry["Id"].partition("_")[2] in self.refuses}

    def await_answer(self) -> None:
        self.calls.append("probe")
        answer = self.probe_answers.pop(0) if self.probe_answers else None
        if answer is not None:
            raise copy(answer)
