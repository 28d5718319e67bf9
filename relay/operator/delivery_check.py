"""`python -m relay.delivery --check`: could mail leave with these settings, from here, now?

As `python -m relay --check` for the relay. Every statement of the worker's is carried out in a transaction that is
rolled back; the queue is asked for each right without taking a message, SES without sending a mail.
"""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import os
from collections.abc import Iterator
from typing import Final

from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

from config.settings import Settings
from relay.aws.causes import call_cause
from relay.aws.sqs_receiver import QueueReceiver
from relay.core.errors import QueueUnavailable
from relay.delivery.deliverer import DEFAULT_REGION
from relay.operator import (
    delivery_redis_probe,
    events_probe,
    outgoing_probe,
    ses_probe,
    smart_host_probe,
    webhook_probe,
)
from relay.operator.checking import ANSWER_SECONDS, run
from relay.operator.finding import FAIL, OK, WARN, Finding, counted

#: What a consumer of the queue must be allowed to do.
_NEEDED: Final = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility")


def main() -> int:
    """Runs every check; the exit status, see `checking.run`."""
    return run(
        lambda settings: (
            f"{counted(settings.delivery_processes, 'process', 'processes')},"
            f" {counted(settings.delivery_concurrency, 'mail')} at a time each"
        ),
        lambda settings: (*_metrics(settings), *_tracking(settings), *_topics(settings)),
        lambda settings: (
            ("database", _database),
            ("redis", _redis),
            ("queue", _queue),
            (settings.provider, _provider),
            ("webhooks", _webhooks),
        ),
    )


def _metrics(settings: Settings) -> Iterator[Finding]:
    own, relays = settings.delivery_metrics_port, settings.metrics_port
    if own is None or relays is None:
        return
    if own < relays + settings.web_concurrency and relays < own + settings.delivery_processes:
        text = f"ports from {own} on are those of SMTP_RELAY_METRICS_PORT too: one machine can't serve both"
        yield Finding(WARN, "metrics", text)


def _tracking(settings: Settings) -> Iterator[Finding]:
    unset = Finding(OK, "tracking", "TRACKING_SECRET is not set: nothing is tracked")
    return events_probe.tracking(settings, unset=unset, makes_links=True)


def _topics(settings: Settings) -> Iterator[Finding]:
    unset = Finding(OK, "events", "SES_EVENTS_SNS_TOPIC_ARN is not set: the worker says itself that mails are sent")
    meaning = "where a configuration set is named, SES says by {} that mails are sent"
    return events_probe.topics(settings, unset=unset, meaning=meaning)


def _webhooks(settings: Settings) -> Iterator[Finding]:
    return webhook_probe.findings(settings, seconds=ANSWER_SECONDS)


def _database(settings: Settings) -> Iterator[Finding]:
    return outgoing_probe.findings(settings, seconds=ANSWER_SECONDS)


def _redis(settings: Settings) -> Iterator[Finding]:
    return delivery_redis_probe.findings(settings, timeout=ANSWER_SECONDS / 2)


def _queue(settings: Settings) -> Iterator[Finding]:
    if settings.queue_url is None:
        yield Finding(OK, "queue", "BACKGROUND_JOBS_QUEUE_URL is not set: the worker polls Postgres")
        return
    seconds = ANSWER_SECONDS / 2
    receiver = QueueReceiver(settings.queue_url, settings.aws_region, open_seconds=seconds, call_seconds=seconds)
    try:
        refused = receiver.probe()
        redrives = "GetQueueAttributes" not in refused and receiver.redrives()
    except QueueUnavailable as unavailable:
        yield Finding(FAIL, "queue", f"{settings.queue_url}: {call_cause(unavailable.code)}")
        return
    finally:
        receiver.close()
    for action in _NEEDED:
        if action in refused:
            yield Finding(FAIL, "queue", f"the role may not call sqs:{action}")
    if "GetQueueAttributes" in refused:
        lost = "; messages that are not jobs are deleted" if receiver.fifo else ""
        yield Finding(WARN, "queue", f"the role may not call sqs:GetQueueAttributes{lost}")
    elif not redrives:
        fate = "deleted" if receiver.fifo else "received again and again"
        yield Finding(WARN, "queue", f"has no redrive policy: messages that are not jobs are {fate}")
    if not any(action in refused for action in _NEEDED):
        yield Finding(OK, "queue", f"answers ({'FIFO' if receiver.fifo else 'standard'})")


def _provider(settings: Settings) -> Iterator[Finding]:
    if settings.provider == "ses":
        regions = dict.fromkeys((*outgoing_probe.regions(settings, seconds=ANSWER_SECONDS / 4), DEFAULT_REGION))
        yield from ses_probe.findings(list(regions), seconds=ANSWER_SECONDS / 2)
        return
    if settings.provider == "smtp":
        yield from smart_host_probe.findings(settings, seconds=ANSWER_SECONDS)
        return
    folder = settings.maildir or "maildir"
    nearest = os.path.abspath(folder)
    while not os.path.exists(nearest):
        nearest = os.path.dirname(nearest)
    if os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(WARN, "maildir", f"mails are written to files in {folder}, nothing is sent")
    else:
        yield Finding(FAIL, "maildir", f"{folder} can't be written to, or can't be made")
