"""One send job (contract section 5), and how a batch of them is sent."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

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
            random_hex = os.urandom(24).hex()
            traceparent = f"00-{random_hex[:32]}-{random_hex[32:]}-01"
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


def send_jobs(queue: Queue, jobs: Sequence[Job]) -> list[Job]:
    """Sends at most BATCH_SIZE jobs; returns those that the queue refused. Raises QueueUnavailable: it took none."""
    fifo = queue.fifo
    refused = queue.send([job.entry(position, fifo=fifo) for position, job in enumerate(jobs)])
    if refused:
        log.warning("jobs_refused", jobs=len(refused), codes=sorted(set(refused.values())))
    return [jobs[int(entry_id.partition("_")[0])] for entry_id in refused]
