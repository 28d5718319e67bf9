"""`python -m relay --check`: could mail flow with these settings, from here, now? Fit for a release phase.

A line for each part: `ok`, `warn` (mail flows, but something is worse than it could be) or `FAIL`. Exit status 0 when
nothing fails, 1 when something does, 2 for a wrong setting. What mail does with Postgres, Redis and the queue is done
once, by the same code: in Postgres in transactions that are rolled back, in Redis under names that are deleted again,
at the queue as far as nothing is sent.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

from collections.abc import Iterator

from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

from config.settings import Settings
from relay.aws.causes import call_cause
from relay.core.errors import QueueUnavailable
from relay.operator import certificate_probe, postgres_probe
from relay.operator.checking import ANSWER_SECONDS, run
from relay.operator.finding import FAIL, OK, WARN, Finding, counted
from relay.operator.redis_probe import RedisProbe
from relay.server import sockets


def main() -> int:
    """Runs every check; the exit status, see `checking.run`."""
    return run(
        lambda settings: f"{counted(settings.web_concurrency, 'worker')}, listening on {settings.host}:{settings.port}",
        lambda settings: (*_ports(settings), *_certificate(settings)),
        lambda _: (("database", _database), ("redis", _redis), ("queue", _queue)),
    )


# What this machine has.


def _ports(settings: Settings) -> Iterator[Finding]:
    """Whether the relay could listen."""
    try:
        sockets.try_to_bind(settings)
    except sockets.CannotListen as error:
        yield Finding(FAIL, "port", str(error))


def _certificate(settings: Settings) -> Iterator[Finding]:
    if not (settings.tls_cert_path and settings.tls_key_path):
        yield Finding(WARN, "certificate", "none: STARTTLS is not offered, API keys travel in the clear")
        return
    yield from certificate_probe.findings(settings.tls_cert_path, settings.tls_key_path)


# What it reaches.


def _database(settings: Settings) -> Iterator[Finding]:
    return postgres_probe.findings(settings, seconds=ANSWER_SECONDS)


def _redis(settings: Settings) -> Iterator[Finding]:
    """Not there, it is a warning: mail flows without Redis, more slowly and with fewer repeats noticed.

    There, and never able to do what is asked of it, it fails.
    """
    if settings.redis_url is None:
        yield Finding(WARN, "redis", "REDIS_URL is not set: look-ups are slower, repeats are not detected")
        return
    yield from RedisProbe(settings, timeout=ANSWER_SECONDS / 2).findings()


def _queue(settings: Settings) -> Iterator[Finding]:
    if settings.queue_url is None:
        yield Finding(OK, "queue", "BACKGROUND_JOBS_QUEUE_URL is not set: the delivery worker has to poll Postgres")
        return
    from relay.aws.sqs import Queue  # noqa: PLC0415 - a tenth of a second that polling mode need not pay

    seconds = ANSWER_SECONDS / 2
    try:
        queue = Queue(
            settings.queue_url, settings.aws_region, open_seconds=seconds, connect_seconds=seconds, call_seconds=seconds
        )
        queue.probe()
    except QueueUnavailable as unavailable:
        yield Finding(FAIL, "queue", f"{settings.queue_url}: {call_cause(unavailable.code)}")
    else:
        yield Finding(OK, "queue", f"answers ({'FIFO' if queue.fifo else 'standard'})")
