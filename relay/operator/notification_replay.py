"""`python -m relay.web --replay QUEUE-URL`: what SNS could not deliver, and put into a dead-letter queue, is taken up.

Each message is one of SNS with its signature, and is treated as if it had come by HTTP. What is stored, or says
nothing, is deleted; what is refused stays in the queue, and what can't be stored now comes back to it.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import sys
from collections import Counter
from hashlib import sha256
from typing import Final

from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

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
    left: set[bytes] = set()
    try:
        while _replay(receiver, parts, counts, left):
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


def _replay(receiver: QueueReceiver, parts: WebParts, counts: Counter[str], left: set[bytes]) -> bool:
    """Whether there may be more. Raises QueueUnavailable.

    `left`: digests of what stays in the queue. It comes again while others are taken up, and is looked at once.
    """
    messages = receiver.receive(MAX_MESSAGES, visibility_seconds=_VISIBILITY_SECONDS, wait_seconds=_WAIT_SECONDS)
    any_new = False
    for message in messages:
        # As a text it came from JSON, so it may have halves of surrogate pairs.
        body = message.body.encode("utf-8", "replace")
        digest = sha256(body).digest()
        if digest in left:
            continue
        any_new = True
        status = parts.notifications.take(body, None).status
        counts[status] += 1
        if status == "200 OK":
            receiver.delete(message)
        else:
            left.add(digest)
    return any_new
