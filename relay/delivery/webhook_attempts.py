"""One attempt of a webhook delivery, and what becomes of the delivery by it (contract sections 3 and 9)."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Final

import structlog
from gevent.lock import BoundedSemaphore

from relay.core import metrics
from relay.core.errors import PostgresUnavailable
from relay.delivery.outbound_http import Outbound, RefusedUrlError, UnavailableError
from relay.delivery.webhook_message import message, type_of
from relay.delivery.webhook_places import SLOW_SECONDS
from relay.delivery.webhook_secrets import UnreadableSecretError, WebhookSecrets
from relay.postgres.webhook_deliveries import ClaimedDelivery, WebhookDeliveries, WebhookResult

log = structlog.get_logger(__name__)

#: Seconds for a call: name, connection, handshake, request and response.
CALL_SECONDS: Final = 5.0
#: Seconds from a failed attempt to the next one; after the one that follows the last of them it is a dead letter.
RETRY_SECONDS: Final = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 36_000.0)
#: The part of these that is added at random, at most.
JITTER: Final = 0.1
#: Seconds after which a delivery that an error on this side stopped is taken up again. It uses up no attempt.
POSTPONED_SECONDS: Final = 300.0
#: Characters of a response that are stored, and the octets that are read for them.
STORED_CHARACTERS: Final = 1_000
READ_OCTETS: Final = 4 * STORED_CHARACTERS + 4
#: Octets of the largest payload that is delivered. SES's own have 256 KB at most.
MOST_PAYLOAD_OCTETS: Final = 1_048_576
#: Payloads above HELD_OCTETS that are in memory at a time.
_LARGE_AT_A_TIME: Final = 4

for _outcome in ("success", "retry", "dead_letter", "failed", "postponed"):
    metrics.WEBHOOK_DELIVERIES.labels(_outcome)
for _result in ("2xx", "3xx", "4xx", "5xx", "none"):
    metrics.WEBHOOK_SECONDS.labels(_result)


class WebhookAttempts:
    """Makes attempts. `outbound`: how endpoints are reached."""

    def __init__(self, deliveries: WebhookDeliveries, secrets: WebhookSecrets, outbound: Outbound) -> None:
        self._deliveries = deliveries
        self._secrets = secrets
        self._outbound = outbound
        self._large = BoundedSemaphore(_LARGE_AT_A_TIME)

    def make(self, delivery: ClaimedDelivery, *, until: float) -> tuple[WebhookResult, bool] | None:
        """What is to be recorded of a claimed delivery, and whether its endpoint answered soon.

        `until`: the end of its lease (time.monotonic()). None: too little of that is left for a call, which another
        worker may be about to make; nothing was done. Raises PostgresUnavailable where the payload can't be read.
        """
        try:
            return self._made(delivery, until - CALL_SECONDS)
        except PostgresUnavailable:
            raise
        except Exception:
            # A bug of ours: no attempt is used up, and the delivery is not lost.
            log.exception("unexpected_error", delivery=delivery.id)
            return _postponed(delivery, "internal error"), True

    def _made(self, delivery: ClaimedDelivery, latest: float) -> tuple[WebhookResult, bool] | None:
        """`latest`: when its call may begin, at the latest."""
        reason = _obstacle(delivery)
        if reason is not None:
            return _failed(delivery, reason), True
        try:
            secret = self._secrets.open(delivery.secret)
        except UnreadableSecretError as error:
            log.error("webhook_secret_unreadable", webhook=delivery.webhook_id, cause=str(error))
            return _postponed(delivery, "the signing secret can't be read"), True
        if delivery.payload is not None:
            return self._call(delivery, delivery.payload, secret) if time.monotonic() <= latest else None
        if not self._large.acquire(timeout=max(0.0, latest - time.monotonic())):
            return None
        try:
            payload = self._deliveries.payload(delivery.event_id)
            if payload is None:
                return _failed(delivery, "Webhook event not found"), True
            return self._call(delivery, payload, secret) if time.monotonic() <= latest else None
        finally:
            self._large.release()

    def _call(self, delivery: ClaimedDelivery, payload: str, secret: str) -> tuple[WebhookResult, bool]:
        now = datetime.now(UTC)
        made = message(
            delivery_id=delivery.id,
            attempt=delivery.attempt + 1,
            kind=type_of(delivery.event_type or "") or "",
            payload=payload,
            secret=secret,
            now=now,
        )
        content = bytearray()

        def receive(_status: int, octets: bytes) -> bool:
            content.extend(octets[: READ_OCTETS - len(content)])
            return len(content) < READ_OCTETS

        status: int | None = None
        began = time.monotonic()
        try:
            status = self._outbound.request(
                "POST", delivery.url or "", made.fields, made.body, receive=receive, seconds=CALL_SECONDS
            )
            text = content.decode("utf-8", "replace")
        except RefusedUrlError as refused:
            return _failed(delivery, f"Refused unsafe webhook URL: {refused}"), True
        except UnavailableError as unavailable:
            text = str(unavailable)
        label = "none" if status is None else f"{status // 100}xx"
        seconds = time.monotonic() - began
        metrics.WEBHOOK_SECONDS.labels(label).observe(seconds)
        return _attempted(delivery, now, status, text), status is not None and seconds <= SLOW_SECONDS


def _obstacle(delivery: ClaimedDelivery) -> str | None:
    """Why a delivery is never made; None: it may be."""
    if delivery.url is None:
        return "Webhook not found"
    if delivery.webhook_status != "active":
        return "Webhook is disabled"
    if delivery.event_type is None:
        return "Webhook event not found"
    if type_of(delivery.event_type) is None:
        return f"Unsupported webhook event type: {delivery.event_type}"
    if delivery.payload_octets > MOST_PAYLOAD_OCTETS:
        return f"The event is larger than {MOST_PAYLOAD_OCTETS} octets"
    return None


def _attempted(delivery: ClaimedDelivery, now: datetime, status: int | None, text: str) -> WebhookResult:
    attempt = delivery.attempt + 1
    seconds = None
    if status is not None and 200 <= status < 300:
        outcome = "success"
    elif attempt > len(RETRY_SECONDS):
        outcome = "dead_letter"
    else:
        outcome = "pending"
        # Up to so much later, so that what failed together does not come back together.
        seconds = RETRY_SECONDS[attempt - 1] * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311 - spreads load
    metrics.WEBHOOK_DELIVERIES.labels("retry" if outcome == "pending" else outcome).inc()
    return WebhookResult(
        delivery=delivery,
        status=outcome,
        attempt=attempt,
        attempted_at=now,
        status_code=status,
        response_body=_stored(text),
        seconds=seconds,
    )


def _failed(delivery: ClaimedDelivery, reason: str) -> WebhookResult:
    """Final at once; no attempt was made."""
    metrics.WEBHOOK_DELIVERIES.labels("failed").inc()
    return _without_attempt(delivery, reason, status="failed", seconds=None)


def _postponed(delivery: ClaimedDelivery, reason: str) -> WebhookResult:
    """An error on this side: no attempt was made, and none is used up."""
    metrics.WEBHOOK_DELIVERIES.labels("postponed").inc()
    return _without_attempt(delivery, reason, status="pending", seconds=POSTPONED_SECONDS)


def _without_attempt(delivery: ClaimedDelivery, reason: str, *, status: str, seconds: float | None) -> WebhookResult:
    return WebhookResult(
        delivery=delivery,
        status=status,
        attempt=delivery.attempt,
        attempted_at=None,
        status_code=None,
        response_body=_stored(reason),
        seconds=seconds,
    )


def _stored(text: str) -> str:
    """What of a text is stored: Postgres has no U+0000."""
    text = text.replace("\x00", "\ufffd")
    return text if len(text) <= STORED_CHARACTERS else text[:STORED_CHARACTERS] + "…"
