"""The process for large messages: `python -m relay.bulkprocess DESCRIPTOR`, started by `relay.bulk` alone."""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import json
import socket
import sys
from dataclasses import asdict
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore

from relay import worker
from relay.accept import Acceptor
from relay.bulk import LENGTH_OCTETS, receive_exactly, receive_message, send_message, submission_of
from relay.spool import Body


def serve(descriptor: int) -> int:
    """Messages in, verdicts out, until the other side closes; the exit status.

    The parent sees to it that there are never more messages at a time than there is memory for.
    """
    with socket.socket(fileno=descriptor) as channel:
        settings = receive_message(channel)
        if settings is None:
            return 0
        acceptor = worker.bulk_acceptor(settings)
        answering = BoundedSemaphore(1)
        while True:
            length, descriptors, _, _ = socket.recv_fds(channel, LENGTH_OCTETS, 1)
            head = receive_exactly(channel, int.from_bytes(length, "big")) if length else None
            if head is None:
                return 0
            gevent.spawn(_answer, channel, answering, acceptor, json.loads(head), Body.from_file(descriptors[0]))


def _answer(
    channel: socket.socket, answering: BoundedSemaphore, acceptor: Acceptor, head: dict[str, Any], body: Body
) -> None:
    try:
        verdict = acceptor.accept(submission_of(head, body))
    finally:
        body.close()
    with answering:
        send_message(channel, json.dumps({"number": head["number"], **asdict(verdict)}).encode("ascii"))


if __name__ == "__main__":
    raise SystemExit(serve(int(sys.argv[1])))
