"""`python -m relay.web --check`: could it serve with these settings, from here, now?

As `python -m relay --check` for the relay. Every statement of the process's is carried out in a transaction that is
rolled back; nothing is asked of Amazon.
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
from relay.operator import certificate_probe, events_probe, web_probe, web_redis_probe
from relay.operator.checking import ANSWER_SECONDS, run
from relay.operator.finding import OK, WARN, Finding, counted
from relay.operator.redis_probe import RedisProbe


def main() -> int:
    """Runs every check; the exit status, see `checking.run`."""
    return run(
        lambda settings: (
            f"{counted(settings.http_processes, 'process', 'processes')},"
            f" listening on {settings.host}:{settings.http_port}"
        ),
        lambda settings: (*_certificate(settings), *_tracking(settings), *_topics(settings)),
        lambda _: (("database", _database), ("redis", _redis), ("queue", _queue)),
    )


def _certificate(settings: Settings) -> Iterator[Finding]:
    if not (settings.http_tls and settings.tls_cert_path and settings.tls_key_path):
        yield Finding(OK, "certificate", "none: TLS is the platform's")
        return
    yield from certificate_probe.findings(settings.tls_cert_path, settings.tls_key_path)


def _tracking(settings: Settings) -> Iterator[Finding]:
    unset = Finding(WARN, "tracking", "TRACKING_SECRET is not set: tracked links are not served")
    return events_probe.tracking(settings, unset=unset, makes_links=False)


def _topics(settings: Settings) -> Iterator[Finding]:
    unset = Finding(WARN, "events", "SES_EVENTS_SNS_TOPIC_ARN is not set: no event of SES is accepted")
    return events_probe.topics(settings, unset=unset, meaning="those of {} are accepted")


def _queue(settings: Settings) -> Iterator[Finding]:
    """Jobs make webhooks come sooner: without them nothing is lost, so no finding is a failure."""
    if settings.queue_url is None:
        yield Finding(OK, "queue", "BACKGROUND_JOBS_QUEUE_URL is not set: webhooks are announced by Redis alone")
        return
    from relay.aws.sqs import Queue  # noqa: PLC0415 - a tenth of a second, only where there is a queue

    seconds = ANSWER_SECONDS / 2
    queue = Queue(
        settings.queue_url, settings.aws_region, open_seconds=seconds, connect_seconds=seconds, call_seconds=seconds
    )
    try:
        queue.probe()
    except QueueUnavailable as unavailable:
        code = call_cause(unavailable.code)
        yield Finding(WARN, "queue", f"{settings.queue_url}: {code}; webhooks wait for the next look at Postgres")
    else:
        yield Finding(OK, "queue", f"answers ({'FIFO' if queue.fifo else 'standard'}): webhooks are announced by jobs")


def _database(settings: Settings) -> Iterator[Finding]:
    return web_probe.findings(settings, seconds=ANSWER_SECONDS)


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        yield Finding(WARN, "redis", f"REDIS_URL is not set: {web_redis_probe.LOST}")
        return
    seconds = ANSWER_SECONDS / 2
    found = list(web_redis_probe.findings(settings, timeout=seconds))
    if all(finding.level == OK for finding in found):
        found = list(RedisProbe(settings, timeout=seconds).findings())
    yield from found
