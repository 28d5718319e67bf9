"""`python -m relay --check`: could mail flow with these settings, from here, now? Fit for a release phase.

A line for each part: `ok`, `warn` (mail flows, but something is worse than it could be) or `FAIL`. Exit status 0 when
nothing fails, 1 when something does, 2 for a wrong setting. What mail does with Postgres, Redis and the queue is done
once, by the same code: in Postgres in transactions that are rolled back, in Redis under names that are deleted again,
at the queue as far as nothing is sent. Nothing that is printed holds a text of a library's, so no part of a URL; and it
ends within ten seconds whatever hangs.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import gevent
import structlog
from psycogreen.gevent import patch_psycopg

patch_psycopg()

from config import environment, redaction
from config.settings import Settings
from relay.core.errors import QueueUnavailable
from relay.operator import postgres_probe, preflight
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.operator.redis_probe import RedisProbe
from relay.server.certificate import CertificateStore, expiry_warning
from relay.server.openssl_policy import dear_groups

#: No check takes longer, in seconds.
LIMIT: Final = 10.0
#: Time limits of what is asked, in seconds: below LIMIT, so that it can be said what was wrong.
ANSWER_SECONDS: Final = 4.0

#: Codes of SQS's JSON protocol by which nobody would find them in its documentation.
OTHER_NAMES: Final = {"QueueDoesNotExist": "AWS.SimpleQueueService.NonExistentQueue"}

_COLOURS: Final = {OK: "\x1b[32m", WARN: "\x1b[33m", FAIL: "\x1b[31m"}


def main() -> int:
    """Runs every check and prints what it found; the exit status."""
    logging.disable(logging.CRITICAL)  # what is worth saying is said below
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        settings = preflight.load()
    except environment.WrongSettings as error:
        for line in str(error).splitlines():
            show(Finding(FAIL, "settings", line))
        return 2
    show(Finding(OK, "settings", f"{settings.web_concurrency} worker(s), listening on {settings.host}:{settings.port}"))
    parts = (("database", _database), ("redis", _redis), ("queue", _queue))
    findings = [*_certificate(settings), *gather(settings, parts)]
    for finding in findings:
        show(finding)
    return 1 if any(finding.level == FAIL for finding in findings) else 0


def show(finding: Finding) -> None:
    """Prints one line."""
    level = f"{finding.level:<4}"
    if os.isatty(1) and not os.environ.get("NO_COLOR"):
        level = f"{_COLOURS[finding.level]}{level}\x1b[0m"
    sys.stdout.write(f"{level}  {finding.part:<12} {finding.text}\n")
    sys.stdout.flush()


# What this machine has.


def _certificate(settings: Settings) -> Iterator[Finding]:
    if not (settings.tls_cert_path and settings.tls_key_path):
        yield Finding(WARN, "certificate", "none: STARTTLS is not offered, API keys travel in the clear")
        return
    store = CertificateStore(settings.tls_cert_path, settings.tls_key_path)
    dear = dear_groups(store.context)
    wrong_dates = expiry_warning(store)
    if dear:
        yield Finding(FAIL, "certificate", f"OpenSSL takes TLS groups that cost too much: {', '.join(dear)}")
    elif wrong_dates:
        yield Finding(WARN, "certificate", wrong_dates)
    else:
        yield Finding(OK, "certificate", settings.tls_cert_path)


# What it reaches: all at the same time, in greenlets as a worker has them, over the connections that mail takes.


def gather(settings: Settings, parts: Sequence[tuple[str, Callable[[Settings], Iterator[Finding]]]]) -> list[Finding]:
    """What the checks find, each within LIMIT. `parts`: what each is called, and the check."""
    greenlets = [gevent.spawn(_collect, part, check, settings) for part, check in parts]
    gevent.joinall(greenlets, timeout=LIMIT)
    found: list[Finding] = []
    for (part, _), greenlet in zip(parts, greenlets, strict=True):
        hanging = [Finding(WARN if part == "redis" else FAIL, part, f"no answer within {LIMIT:.0f} s")]
        found += greenlet.value or hanging
    return found


def _collect(part: str, check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> list[Finding]:
    try:
        return list(check(settings))
    except Exception as error:  # noqa: BLE001 - its text may hold anything, its type and place don't
        return [Finding(FAIL, part, redaction.summary(error))]


def _database(settings: Settings) -> Iterator[Finding]:
    return postgres_probe.findings(settings, seconds=ANSWER_SECONDS)


def _redis(settings: Settings) -> Iterator[Finding]:
    """Not there, it is a warning: mail flows without Redis, more slowly and with fewer repeats noticed.

    There, and never able to do what is asked of it, it fails.
    """
    if settings.redis_url is None:
        yield Finding(WARN, "redis", "REDIS_URL is not set: every look-up goes to Postgres, repeats are not noticed")
        return
    yield from RedisProbe(settings, timeout=ANSWER_SECONDS / 2).findings()


def _queue(settings: Settings) -> Iterator[Finding]:
    if settings.queue_url is None:
        yield Finding(OK, "queue", "BACKGROUND_JOBS_QUEUE_URL is not set: mails wait in Postgres for a polling worker")
        return
    from relay.aws.sqs import Queue  # noqa: PLC0415 - a tenth of a second that polling mode need not pay

    seconds = ANSWER_SECONDS / 2
    try:
        queue = Queue(
            settings.queue_url, settings.aws_region, open_seconds=seconds, connect_seconds=seconds, call_seconds=seconds
        )
        queue.probe()
    except QueueUnavailable as unavailable:
        yield Finding(FAIL, "queue", f"{settings.queue_url}: {OTHER_NAMES.get(unavailable.code, unavailable.code)}")
    else:
        yield Finding(OK, "queue", f"answers ({'FIFO' if queue.fifo else 'standard'})")
