"""What a child of the process for large messages does: it reads one message, stores it, answers, and ends.

Whatever a message makes of its child, nobody else pays for it. The bounds are the kernel's, so that they hold in the
midst of a regular expression or of a library written in C: a timer of CPU time while the message is parsed, and one of
the clock for all of it. Neither is handled, so each of them ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
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
    Order,
    Reading,
    Started,
    Uses,
    decode_head,
    encode_report,
    receive_message,
    send_message,
)
from relay.intake.lookups import Lookups
from relay.mail import Limits, Message, parse
from relay.mail.unread import parse_header
from relay.postgres.store import Store
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
#: For an answer of Redis. Each child makes a connection of its own, on a machine that may be busy, and a message that
#: is stored without a claim is stored again when it is repeated: it waits rather longer than a worker's messages do.
REDIS_SECONDS: Final = 3.0
#: Longer than WORK_SECONDS; see `AcceptOptions.lease_seconds`.
LEASE_SECONDS: Final = 120.0
#: Added to the score by which the kernel chooses whom to end when memory is short: a child before anybody else.
_EXPENDABLE: Final = 500
#: Of mallopt(3): from how many octets on memory is mapped for itself, and unmapped when it is freed.
_M_MMAP_THRESHOLD: Final = -3
_MAPPED_FROM: Final = 1 << 20


def store(settings: Settings, answers: int, body: int) -> None:
    """Carries out the order that comes over the socket `answers`; `body`: the file with the message's octets."""
    _bound()
    config.logging.configure(settings)
    config.sentry.init(settings, __version__)
    with socket.socket(fileno=answers) as channel, contextlib.closing(Body.from_file(body)) as spooled:
        head = receive_message(channel)
        if head is not None:
            # Without a worker there is nobody to tell, and the process for large messages ends its children.
            with contextlib.suppress(ConnectionError):
                _answer(settings, channel, head, spooled)
    config.sentry.flush()


def _bound() -> None:
    """What holds for all that this process does."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, WORK_SECONDS)
    # None of the deaths that are meant to happen leaves forty megabytes of somebody's mail on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        # What is freed goes back to the kernel at once. glibc would keep pieces of up to 32 MB for the next of them,
        # after the first one that was freed: a quarter of the memory of a large message.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write(str(_EXPENDABLE))


def _answer(settings: Settings, channel: socket.socket, head: bytes, body: Body) -> None:
    try:
        order = decode_head(head, body)
    except ForeignVersion:
        log.error("version_mismatch")
        send_message(channel, encode_report(Verdict(replies.TRY_LATER, "bulk_version")))
        return
    send_message(channel, encode_report(Started()))
    postgres = Store(settings.database_url, deadline=STORE_SECONDS)
    cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=REDIS_SECONDS)
    options = replace(AcceptOptions.of(settings), lease_seconds=LEASE_SECONDS, answer_seconds=ANSWER_SECONDS)
    # A key that is written to the cache is looked at once more a second later, and there is no second later here.
    lookups = Lookups(postgres, cache, write_back_keys=False)
    seconds = PARSE_SECONDS + PARSE_SECONDS_PER_OCTET * body.size
    parse_in_time = _within(seconds, order.reading)

    def parse_and_tell(raw: bytes, limits: Limits, reverse_path: str) -> Message:
        message = parse_in_time(raw, limits, reverse_path)
        send_message(channel, encode_report(Uses(footprint.after_parsing(message))))
        return message

    acceptor = Acceptor(lookups, postgres, options, parse_and_tell)
    try:
        verdict = _accept(acceptor, order)
        send_message(channel, encode_report(verdict))
        with contextlib.suppress(RedisUnavailable):
            # What was sent before, with nobody waiting for it, has arrived when this is answered.
            cache.link.call("PING")
    finally:
        postgres.close()
        cache.close()


def _accept(acceptor: Acceptor, order: Order) -> Verdict:
    try:
        return acceptor.store(order.submission)
    except Exception:  # the top of the process: the client hears 451
        log.exception("unexpected_error", connection=order.submission.connection_id)
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
