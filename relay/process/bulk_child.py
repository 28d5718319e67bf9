"""What a child of the process for large messages does: it reads a message, stores it, answers, and waits for another.

It has one message at a time, so that whatever a message does to its child, no other message is affected. The bounds are
the kernel's, so that they hold within a regular expression or of a library written in C: a timer of CPU time
while the message is parsed, and one of the clock for all of it. Neither is handled, so each of them ends the process.
"""

from __future__ import annotations

import contextlib
import resource
import select
import signal
import socket
from dataclasses import replace
from typing import Final

import structlog

import config.logging
import config.sentry
from config.settings import Settings
from relay import __version__
from relay.core.errors import RedisUnavailable
from relay.intake import footprint
from relay.intake.acceptor import AcceptOptions, Acceptor, Parse
from relay.intake.bulk_protocol import (
    ForeignVersion,
    Reading,
    Report,
    Request,
    Started,
    Uses,
    decode_head,
    encode_report,
    leaves_child_free,
    receive_request,
    send_message,
)
from relay.intake.lookups import Lookups
from relay.mail import Limits, Message, parse
from relay.mail.unread import parse_header
from relay.postgres.store import Store
from relay.process.heap import Heap
from relay.redis.cache import Cache
from relay.smtp import replies
from relay.smtp.spool import Body
from relay.smtp.submission import Verdict

log = structlog.get_logger(__name__)

#: How long a message may take in all; seconds.
WORK_SECONDS: Final = 90.0
#: CPU time that parsing may take, and what each octet adds to it; seconds. An ordinary mail of 40 MB takes 0.3.
PARSE_SECONDS: Final = 4.0
PARSE_SECONDS_PER_OCTET: Final = 0.25e-6
#: For a statement with tens of megabytes, which a busy Postgres works on for seconds. Half of it is for a second try.
STORE_SECONDS: Final = 24.0
#: For everything that Postgres is asked for one message, but for a second more for each 4 MB of an INSERT, and for each
#: 16 MB that Postgres copies for further rows.
ANSWER_SECONDS: Final = 36.0
#: For an answer of Redis. Each child makes a separate connection, on a machine that may be busy, and a message that
#: is stored without a claim is stored again when it is repeated: it waits rather longer than a worker's messages do.
REDIS_SECONDS: Final = 3.0
#: Longer than WORK_SECONDS; see `AcceptOptions.lease_seconds`.
LEASE_SECONDS: Final = 120.0
#: How soon a next message has to come to find the memory of the last one, if that is enough for it.
KEPT_SECONDS: Final = 0.01
#: Added to the score by which the kernel chooses a process to end when memory is short: a child before any other.
_EXPENDABLE: Final = 500


def serve(settings: Settings, descriptor: int) -> None:
    """Carries out the requests that come over the socket `descriptor`, one after the other, until that is closed."""
    _bound()
    config.logging.configure(settings)
    config.sentry.init(settings, __version__)
    with socket.socket(fileno=descriptor) as channel:
        child = _Child(settings, channel)
        # Without a worker there is no reader, and the process for large messages ends its children.
        with contextlib.suppress(ConnectionError), contextlib.closing(child):
            while child.carry_out():
                pass
    config.sentry.flush()


def _bound() -> None:
    """What holds for all that this process does."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # No process that is ended on purpose leaves a core file with forty megabytes of a mail on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(str(_EXPENDABLE))


class _Child:
    """What is kept from one message to the next: connections, and no octet of a message."""

    def __init__(self, settings: Settings, channel: socket.socket) -> None:
        self._channel = channel
        self._heap = Heap()
        #: What was set aside for the last message.
        self._octets = 0
        self._postgres = Store(settings.database_url, deadline=STORE_SECONDS)
        self._cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=REDIS_SECONDS)
        self._options = replace(AcceptOptions.of(settings), lease_seconds=LEASE_SECONDS, answer_seconds=ANSWER_SECONDS)
        # A key that is written to the cache is looked at once more a second later, and there is no second later here.
        self._lookups = Lookups(self._postgres, self._cache, write_back_keys=False)

    def close(self) -> None:
        """Ends the connections."""
        self._postgres.close()
        self._cache.close()

    def carry_out(self) -> bool:
        """One request: whether there may be another. Raises OSError when the worker is gone."""
        if not select.select([self._channel], [], [], KEPT_SECONDS)[0]:
            self._heap.trim()
        received = receive_request(self._channel)
        if received is None:
            return False
        head, file = received
        signal.setitimer(signal.ITIMER_REAL, WORK_SECONDS)
        with contextlib.closing(Body.from_file(file)) as body:
            verdict = self._verdict(head, body)
        self._send(verdict)
        with contextlib.suppress(RedisUnavailable):
            # What was sent before without waiting for the reply has arrived when this is answered.
            self._cache.link.call("PING")
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        return leaves_child_free(verdict)

    def _verdict(self, head: bytes, body: Body) -> Verdict:
        try:
            request = decode_head(head, body)
        except ForeignVersion:
            log.error("version_mismatch")
            return Verdict(replies.TRY_LATER, "bulk_version")
        octets = footprint.before_parsing(body.size)
        if octets < self._octets:
            self._heap.trim()
        self._octets = octets
        if body.size <= footprint.IN_ONE_PIECE:
            self._heap.in_one_piece(octets)
        else:
            self._heap.by_pieces()
        self._send(Started())
        acceptor = Acceptor(self._lookups, self._postgres, self._options, self._parser(request.reading, body.size))
        return _accept(acceptor, request)

    def _parser(self, reading: Reading, size: int) -> Parse:
        """The parser for this reading, with its time limit, which reports the memory it uses to the worker."""
        parse_in_time = _within(PARSE_SECONDS + PARSE_SECONDS_PER_OCTET * size, reading)

        def parse_and_tell(raw: bytes, limits: Limits, reverse_path: str) -> Message:
            message = parse_in_time(raw, limits, reverse_path)
            self._send(Uses(footprint.after_parsing(message, len(raw))))
            return message

        return parse_and_tell

    def _send(self, report: Report) -> None:
        send_message(self._channel, encode_report(report))


def _accept(acceptor: Acceptor, request: Request) -> Verdict:
    try:
        return acceptor.store(request.submission)
    except Exception:  # the top of the process: the client gets 451
        log.exception("unexpected_error", connection=request.submission.connection_id)
        return Verdict(replies.TRY_LATER, "failed")


def _within(seconds: float, reading: Reading) -> Parse:
    """The parser that is asked for; it ends the process when it takes more CPU time than that."""
    read = parse if reading is Reading.WHOLE else parse_header

    def parse_in_time(raw: bytes, limits: Limits, reverse_path: str) -> Message:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            return read(raw, limits, reverse_path)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)

    return parse_in_time
