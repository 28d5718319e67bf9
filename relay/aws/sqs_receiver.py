"""An SQS queue, as far as taking messages from it goes: ReceiveMessage, DeleteMessage, ChangeMessageVisibility."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from relay.aws.sqs import Document, Queue, objects
from relay.core.errors import QueueUnavailable
from relay.core.frozen import frozen

#: Seconds that a ReceiveMessage waits for a message: the most that SQS allows.
WAIT_SECONDS: Final = 20
#: Messages of one ReceiveMessage: the most that SQS allows.
MAX_MESSAGES: Final = 10
#: Codes of what is wrong with the parameters alone.
_PARAMETERS: Final = ("InvalidParameterValue", "ReadCountOutOfRange", "ReceiptHandleIsInvalid", "InvalidAddress")


@frozen
class Received:
    """A message in flight. `receipt` names this delivery of it, `count` counts its deliveries, from 1."""

    receipt: str
    body: str
    count: int = 1


class QueueReceiver:
    """Takes messages from one queue. Every method but the constructor raises QueueUnavailable."""

    def __init__(self, url: str, region: str, *, open_seconds: float = 15.0, call_seconds: float | None = None) -> None:
        """`call_seconds`: for a whole call; as a rule what a long poll may take."""
        seconds = WAIT_SECONDS + 10.0 if call_seconds is None else call_seconds
        self._queue = Queue(url, region, open_seconds=open_seconds, call_seconds=seconds)

    @property
    def fifo(self) -> bool:
        """Whether one message in flight holds up all behind it."""
        return self._queue.fifo

    def receive(self, most: int, *, visibility_seconds: int, wait_seconds: int = WAIT_SECONDS) -> list[Received]:
        """At most `most` messages (of MAX_MESSAGES), waiting for the first; no other consumer sees them for so long."""
        answer = self._queue.call(
            "ReceiveMessage",
            {
                "MaxNumberOfMessages": min(most, MAX_MESSAGES),
                "WaitTimeSeconds": wait_seconds,
                "VisibilityTimeout": visibility_seconds,
                "AttributeNames": ["ApproximateReceiveCount"],
            },
        )
        return [
            Received(receipt=str(m["ReceiptHandle"]), body=str(m.get("Body", "")), count=_count(m))
            for m in objects(answer.get("Messages"))
            if "ReceiptHandle" in m
        ]

    def delete(self, received: Received) -> None:
        """The message is done with."""
        self._queue.call("DeleteMessage", {"ReceiptHandle": received.receipt})

    def extend(self, received: Received, seconds: int) -> None:
        """No other consumer sees the message for so long from now; 0: it comes back at once."""
        self._queue.call("ChangeMessageVisibility", {"ReceiptHandle": received.receipt, "VisibilityTimeout": seconds})

    def redrives(self) -> bool:
        """Whether the queue has a redrive policy. False where the role may not know."""
        answer = self._queue.call("GetQueueAttributes", {"AttributeNames": ["RedrivePolicy"]})
        return bool(_attributes(answer).get("RedrivePolicy"))

    def probe(self) -> dict[str, str]:
        """Asks for each right that a consumer needs, without taking a message: action → code, of those refused.

        SQS looks at rights before it refuses a wrong parameter. Raises QueueUnavailable where it can't be asked.
        """
        wrong: Mapping[str, Mapping[str, object]] = {
            "ReceiveMessage": {"MaxNumberOfMessages": 0},
            "DeleteMessage": {"ReceiptHandle": "check"},
            "ChangeMessageVisibility": {"ReceiptHandle": "check", "VisibilityTimeout": 0},
            "GetQueueAttributes": {"AttributeNames": ["RedrivePolicy"]},
        }
        refused = {}
        for action, parameters in wrong.items():
            try:
                self._queue.call(action, parameters)
            except QueueUnavailable as unavailable:
                if "AccessDenied" in unavailable.code:
                    refused[action] = unavailable.code
                elif not unavailable.code.endswith(_PARAMETERS):
                    raise
        return refused

    def close(self) -> None:
        """Closes the connections that are idle."""
        self._queue.close()


def _attributes(document: Document) -> Document:
    """Those of a queue or of a message."""
    found = document.get("Attributes")
    return found if isinstance(found, dict) else {}


def _count(message: Document) -> int:
    count = str(_attributes(message).get("ApproximateReceiveCount", ""))
    return max(1, int(count)) if count.isascii() and count.isdigit() else 1
