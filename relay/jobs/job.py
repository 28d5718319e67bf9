"""One job of the queue (contract section 5): to send a mail, or to make a webhook delivery; and how some are sent."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import orjson
import structlog

from relay.core.frozen import frozen

if TYPE_CHECKING:
    from relay.aws.sqs import Queue

log = structlog.get_logger(__name__)
#: Jobs a SendMessageBatch. Ten of ours are 8 KB, far below the 256 KB that it may have.
BATCH_SIZE: Final = 10
#: Characters. Keeps ten jobs far below what a call may hold.
_MAX_CORRELATION_ID: Final = 256


class QueueJob(Protocol):
    """What can be sent."""

    def entry(self, position: int, *, fifo: bool) -> dict[str, object]:
        """The entry of a SendMessageBatch, in the contract's form. `position`: in the batch; its Id begins with it."""


_J = TypeVar("_J", bound=QueueJob)


@frozen
class Job:
    """One send job. `requested_at` is unix seconds."""

    email_id: str
    correlation_id: str
    traceparent: str
    requested_at: float
    attempts: int = 0

    @classmethod
    def of(cls, email_id: str, correlation_id: str | None = None, traceparent: str | None = None) -> Job:
        """A job as of now; a random traceparent (W3C Trace Context, version 00, sampled) where none is given."""
        if traceparent is None:
            traceparent = _traceparent()
        return cls(email_id, (correlation_id or email_id)[:_MAX_CORRELATION_ID], traceparent, time.time())

    def entry(self, position: int, *, fifo: bool) -> dict[str, object]:
        """The entry of a SendMessageBatch, in the contract's form."""
        job_id = f"email.send:{self.email_id}"
        requested_at = datetime.fromtimestamp(self.requested_at, UTC).isoformat(timespec="milliseconds")
        body = {
            "id": job_id,
            "type": "email.send",
            "source": "api",
            "emailId": self.email_id,
            "requestedAt": requested_at.removesuffix("+00:00") + "Z",
            "trace": {"traceparent": self.traceparent, "correlationId": self.correlation_id},
        }
        entry: dict[str, object] = {
            # Not the position alone: an answer to another call must not be taken for the answer to this one.
            "Id": f"{position}_{self.email_id}",
            "MessageBody": orjson.dumps(body).decode(),
            "MessageAttributes": {
                "jobId": {"DataType": "String", "StringValue": job_id},
                "jobType": {"DataType": "String", "StringValue": "email.send"},
                "source": {"DataType": "String", "StringValue": "api"},
                "correlationId": {"DataType": "String", "StringValue": self.correlation_id},
                "traceparent": {"DataType": "String", "StringValue": self.traceparent},
            },
        }
        if fifo:
            entry |= {"MessageDeduplicationId": job_id, "MessageGroupId": "email.send"}
        return entry


@frozen
class DispatchJob:
    """A webhook delivery that is due. `requested_at` is unix seconds."""

    delivery_id: str
    requested_at: float

    def entry(self, position: int, *, fifo: bool) -> dict[str, object]:
        """See QueueJob."""
        job_id, kind, source = f"webhook.dispatch:{self.delivery_id}", "webhook.dispatch", "ses-ingest"
        requested_at = datetime.fromtimestamp(self.requested_at, UTC).isoformat(timespec="milliseconds")
        traceparent = _traceparent()
        body = {
            "id": job_id,
            "type": kind,
            "source": source,
            "deliveryId": self.delivery_id,
            "requestedAt": requested_at.removesuffix("+00:00") + "Z",
            "trace": {"traceparent": traceparent, "correlationId": self.delivery_id},
        }
        attributes = {"jobId": job_id, "jobType": kind, "source": source}
        attributes |= {"correlationId": self.delivery_id, "traceparent": traceparent}
        entry: dict[str, object] = {
            "Id": f"{position}_{self.delivery_id}",
            "MessageBody": orjson.dumps(body).decode(),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
            },
        }
        if fifo:
            entry |= {"MessageDeduplicationId": job_id, "MessageGroupId": kind}
        return entry


def _traceparent() -> str:
    """A random one (W3C Trace Context, version 00, sampled)."""
    random_hex = os.urandom(24).hex()
    return f"00-{random_hex[:32]}-{random_hex[32:]}-01"


def send_jobs(queue: Queue, jobs: Sequence[_J]) -> list[_J]:
    """Sends at most BATCH_SIZE jobs; returns those that the queue refused. Raises QueueUnavailable: it took none."""
    fifo = queue.fifo
    refused = queue.send([job.entry(position, fifo=fifo) for position, job in enumerate(jobs)])
    if refused:
        log.warning("jobs_refused", jobs=len(refused), codes=sorted(set(refused.values())))
    return [jobs[int(entry_id.partition("_")[0])] for entry_id in refused]
