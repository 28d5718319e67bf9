"""A provider whose answer a test decides."""

from __future__ import annotations

from collections.abc import Sequence

from relay.delivery.outcome import Outcome, Sent
from relay.delivery.provider import Handover


class Scripted:
    """A provider that answers as the test says. A stand-in: the answers are what is asked about."""

    name = "ses"
    region = None

    def __init__(self) -> None:
        self.answer: Outcome = Sent("id")
        #: The recipients of each mail that was handed over.
        self.calls: list[Sequence[str]] = []

    def send(self, handover: Handover) -> Outcome:
        self.calls.append(handover.recipients)
        return self.answer

    def close(self) -> None:
        """Nothing is held open."""
