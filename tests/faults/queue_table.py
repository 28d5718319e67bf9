"""Faults of the queue: clients never hear of it, and jobs follow when it is over."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from tests.faults.by_proxy import (
    AUTH,
    GOOD,
    answering,
    babbling,
    by_proxy,
    deaf,
    dribbling,
    resetting,
    slow,
)
from tests.faults.outages import Fault
from tests.faults.stage import Stage
from tests.support.proxy import Proxy


def _error(status: str, code: str) -> bytes:
    body = b'{"__type":"com.amazonaws.sqs#%b","message":"no"}' % code.encode()
    return b"HTTP/1.1 %b\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


@contextlib.contextmanager
def _sqs_restarted(stage: Stage) -> Iterator[None]:
    stage.kill_queue()
    try:
        yield
    finally:
        stage.start_queue()


QUEUE: Final = (
    Fault(
        "sqs",
        "refusing",
        by_proxy("sqs", Proxy.refuse),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "hanging",
        by_proxy("sqs", Proxy.stall),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "gone without a word",
        by_proxy("sqs", Proxy.vanish),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "half-open: answers are lost",
        by_proxy("sqs", deaf),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "slow: 1 s an answer",
        by_proxy("sqs", slow(1.0)),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "dribbling: an octet every 0.5 s",
        by_proxy("sqs", dribbling(0.5)),
        GOOD,
        AUTH,
        lasts=10.0,
    ),
    Fault(
        "sqs",
        "interim responses without end",
        by_proxy("sqs", babbling(b"HTTP/1.1 100 Continue\r\n\r\n", 0.5)),
        GOOD,
        AUTH,
        lasts=10.0,
    ),
    Fault(
        "sqs",
        "resetting in mid-request",
        by_proxy("sqs", resetting(b"SendMessageBatch", deliver=False)),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "resetting after each request",
        by_proxy("sqs", resetting(b"SendMessageBatch", deliver=True)),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "read-only: access denied",
        by_proxy("sqs", answering(_error("403 Forbidden", "AccessDeniedException"))),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "full: 500",
        by_proxy("sqs", answering(_error("500 Internal Server Error", "InternalFailure"))),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "too many requests: 503",
        by_proxy("sqs", answering(_error("503 Service Unavailable", "ThrottlingException"))),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "speaking rubbish",
        by_proxy("sqs", answering(b"220 mail.example ESMTP\r\n")),
        GOOD,
        AUTH,
    ),
    Fault(
        "sqs",
        "killed and started",
        _sqs_restarted,
        GOOD,
        AUTH,
    ),
)
