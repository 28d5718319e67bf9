"""What a webhook gets: a JSON document, and the header fields that sign it (contract section 9)."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Final

import orjson

from relay.core.frozen import frozen

#: Events of mails, which `email_events.type` names without their prefix.
_EMAIL_TYPES: Final = (
    *("sent", "delivered", "bounced", "complained", "delivery_delayed", "scheduled", "delayed", "suppressed"),
    *("received", "opened", "clicked", "failed"),
)
_TYPES: Final = frozenset(f"email.{name}" for name in _EMAIL_TYPES) | frozenset(
    f"{thing}.{change}" for thing in ("contact", "domain") for change in ("created", "updated", "deleted")
)


@frozen
class WebhookMessage:
    """A request to a webhook: its body, and the header fields that go with it."""

    body: bytes
    fields: dict[str, str]


def type_of(event_type: str) -> str | None:
    """The type as webhooks know it; None for one that they don't. One with a dot is what it says."""
    name = event_type if "." in event_type else f"email.{event_type}"
    return name if name in _TYPES else None


def message(*, delivery_id: str, attempt: int, kind: str, payload: str, secret: str, now: datetime) -> WebhookMessage:
    """The request of an attempt, counted from 1. `payload`: a JSON document, which goes on as it is.

    The same attempt has the same id however often it is made: an endpoint that has had it knows it by that.
    """
    message_id = f"whd_{delivery_id}_{attempt}"
    created = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = orjson.dumps({"id": message_id, "type": kind, "created_at": created})
    body = head[:-1] + b',"data":' + payload.encode("utf-8", "replace") + b"}"
    timestamp = str(int(now.timestamp()))
    return WebhookMessage(
        body,
        {
            "Content-Type": "application/json",
            "User-Agent": "opensend-relay",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "svix-id": message_id,
            "svix-timestamp": timestamp,
            "svix-signature": signature(secret, f"{message_id}.{timestamp}.".encode() + body),
        },
    )


def signature(secret: str, content: bytes) -> str:
    """The header field's value. The secret's text is the key as it stands, without a leading `whsec_`."""
    digest = hmac.digest(secret.removeprefix("whsec_").encode(), content, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode("ascii")
