"""`python -m relay.web --replay QUEUE-URL`: what SNS could not deliver, and put into a dead-letter queue, is taken up.

Each message is one of SNS with its signature, and is treated as if it had come by HTTP. What is stored, or says
nothing, is deleted; what is refused stays in the queue, and what can't be stored now comes back to it.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import sys
from collections import Counter
from typing import Final

from psycogreen.gevent import patch_psycopg

patch_psycopg()

import config.logging
from config import environment
from relay.aws.causes import call_cause
from relay.aws.sns_host import SnsHost
from relay.aws.sqs_receiver import MAX_MESSAGES, QueueReceiver
from relay.core.errors import QueueUnavailable
from relay.operator import preflight
from relay.web.parts import WebParts

#: For how long no other consumer sees what is taken; seconds.
_VISIBILITY_SECONDS: Final = 120
#: The queue is empty when nothing comes within so many seconds.
_WAIT_SECONDS: Final = 2
#: For what is still waiting to be written at the end.
_CLOSE_SECONDS: Final = 3.0


def main(queue_url: str, sns_host: SnsHost | None = None) -> int:
    """Takes up all that the queue has; the exit status: 1 where something is left in it, 2 for wrong settings."""
    try:
        settings = preflight.load()
    except environment.WrongSettings as error:
        sys.stderr.write(f"{error}\n")
        return 2
    config.logging.configure(settings)
    parts = WebParts(settings, SnsHost() if sns_host is None else sns_host)
    parts.start()
    receiver = QueueReceiver(queue_url, settings.aws_region)
    counts: Counter[str] = Counter()
    try:
        while _replay(receiver, parts, counts):
            continue
    except QueueUnavailable as unavailable:
        sys.stderr.write(f"the queue: {call_cause(unavailable.code)}\n")
        return 1
    finally:
        parts.close(_CLOSE_SECONDS)
        receiver.close()
        for status, count in sorted(counts.items()):
            print(f"{count:>8}  {status}")
    return 0 if set(counts) <= {"200 OK"} else 1


def _replay(receiver: QueueReceiver, parts: WebParts, counts: Counter[str]) -> bool:
    """Whether there may be more. Raises QueueUnavailable."""
    messages = receiver.receive(MAX_MESSAGES, visibility_seconds=_VISIBILITY_SECONDS, wait_seconds=_WAIT_SECONDS)
    for message in messages:
        # As a text it came from JSON, so it may have halves of surrogate pairs.
        status = parts.notifications.take(message.body.encode("utf-8", "replace"), None).status
        counts[status] += 1
        if status == "200 OK":
            receiver.delete(message)
    return bool(messages)
