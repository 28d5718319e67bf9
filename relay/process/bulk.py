"""The process for large messages: `python -m relay.process.bulk DESCRIPTOR`, started by `relay.intake.bulk_lane`."""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

from psycogreen.gevent import patch_psycopg

patch_psycopg()

import contextlib
import json
import socket
import sys
from dataclasses import replace
from typing import Any, Final

import structlog
from gevent.lock import BoundedSemaphore

import config.logging
import config.sentry
from config.settings import Settings
from relay import __version__
from relay.core.supervision import run_once
from relay.intake.acceptor import AcceptOptions, Acceptor
from relay.intake.bulk_protocol import (
    LENGTH_OCTETS,
    answer_of,
    receive_exactly,
    receive_message,
    send_message,
    submission_of,
)
from relay.intake.lookups import Lookups
from relay.postgres.store import Store
from relay.redis.cache import Cache
from relay.smtp import replies
from relay.smtp.spool import Body
from relay.smtp.submission import Verdict

log = structlog.get_logger(__name__)

#: For a statement with tens of megabytes, which a busy Postgres works on for seconds. Half of it is for a second try.
STORE_SECONDS: Final = 24.0
#: For everything that Postgres is asked for one message, but for a second more for each 4 MB of an INSERT.
ANSWER_SECONDS: Final = 36.0
#: Longer than all that; see `AcceptOptions.lease_seconds`.
LEASE_SECONDS: Final = 60.0


def serve(descriptor: int) -> int:
    """Messages in, verdicts out, until the other side closes; the exit status.

    The parent sees to it that there are never more messages at a time than there is memory for.
    """
    with socket.socket(fileno=descriptor) as channel:
        settings = receive_message(channel)
        if settings is None:
            return 0
        acceptor = _acceptor(Settings.from_json(settings))
        answering = BoundedSemaphore(1)
        while True:
            try:
                length, descriptors, _, _ = socket.recv_fds(channel, LENGTH_OCTETS, 1)
                head = receive_exactly(channel, int.from_bytes(length, "big")) if length else None
            except ConnectionError:
                head = None  # the parent was killed, which is an end as good as any
            if head is None:
                return 0
            body = Body.from_file(descriptors[0])
            run_once("large-message", _answer, channel, answering, acceptor, json.loads(head), body)


def _acceptor(settings: Settings) -> Acceptor:
    config.logging.configure(settings)
    config.sentry.init(settings, __version__)
    store = Store(settings.database_url, deadline=STORE_SECONDS)
    cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify)
    options = replace(AcceptOptions.of(settings), lease_seconds=LEASE_SECONDS, answer_seconds=ANSWER_SECONDS)
    return Acceptor(Lookups(store, cache), store, options)


def _answer(
    channel: socket.socket, answering: BoundedSemaphore, acceptor: Acceptor, head: dict[str, Any], body: Body
) -> None:
    verdict = _accept(acceptor, head, body)
    # Without a parent there is nobody to tell, and the loop above will hear of it.
    with answering, contextlib.suppress(ConnectionError):
        send_message(channel, answer_of(head["number"], verdict))


def _accept(acceptor: Acceptor, head: dict[str, Any], body: Body) -> Verdict:
    try:
        return acceptor.store(submission_of(head, body))
    except Exception:  # the top of the greenlet: the client hears 451, and the next message is served
        log.exception("unexpected error", connection=head["connection_id"])
        return Verdict(replies.TRY_LATER, "failed")
    finally:
        body.close()


if __name__ == "__main__":
    raise SystemExit(serve(int(sys.argv[1])))
