"""What SES reports of a mail, as an event of ours (contract section 8)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import orjson

from relay.core.address import MAX_ADDRESS_LENGTH, comparison_form
from relay.core.frozen import frozen
from relay.core.ids import new_email_id
from relay.core.json_document import loads, without_nul

#: SES's word → our type, and the member that holds what there is to say.
_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "Send": ("sent", "send"),
    "Delivery": ("delivered", "delivery"),
    "Bounce": ("bounced", "bounce"),
    "Complaint": ("complained", "complaint"),
    "DeliveryDelay": ("delivery_delayed", "deliveryDelay"),
    "Open": ("opened", "open"),
    "Click": ("clicked", "click"),
    "Reject": ("failed", "reject"),
    "RenderingFailure": ("failed", "failure"),
    # As SES's documents call it in some places.
    "Rendering Failure": ("failed", "failure"),
}
#: The header, and the tag, that hold the id of the row.
_ENTITY: Final = "x-entity-id"
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
#: Recipients of one event that are suppressed. A mail has fifty.
_MOST_RECIPIENTS: Final = 1000
_MOST_MESSAGE_ID: Final = 255


class Unreadable(Exception):
    """JSON that can't be read, or can't be stored."""


@frozen
class SesEvent:
    """One event, and the document that `relay.postgres.events.Events.write_ses` takes.

    `recipients` (comparison form) are to be suppressed; `reason` for it, or nothing.
    """

    email_id: str
    document: bytes
    recipients: tuple[str, ...]
    reason: str


def event_of(text: str, source_id: str) -> SesEvent | None:
    """The event in the Message of a notification with this MessageId; None where there is none that concerns a mail.

    Raises Unreadable for what begins as one and ends in the middle, or holds what JSON has no word for.
    """
    if not text.lstrip().startswith("{"):
        return None  # a greeting: "Successfully validated SNS topic for Amazon SES event publishing."
    try:
        message = loads(text)
    except ValueError:
        raise Unreadable from None
    if not isinstance(message, dict):
        return None
    word = message.get("eventType") or message.get("notificationType")
    known = _TYPES.get(word) if isinstance(word, str) else None
    mail = message.get("mail")
    if known is None or not isinstance(mail, dict):
        return None
    kind, member = known
    email_id = _email_id(mail)
    if email_id is None:
        return None
    found = message.get(member)
    payload = found if isinstance(found, dict) else message
    reason = _reason(kind, payload)
    recipients = _recipients(payload, "bouncedRecipients" if kind == "bounced" else "complainedRecipients")
    message_id = mail.get("messageId")
    event = {
        "id": new_email_id(),
        "source_id": source_id.replace("\0", ""),
        "type": kind,
        "email_id": email_id,
        "payload": payload,
        "received_at": datetime.now(UTC).isoformat(),
        "recipients": list(recipients) if reason else [],
        "reason": reason,
        "message_id": message_id[:_MOST_MESSAGE_ID] if isinstance(message_id, str) else None,
    }
    return SesEvent(email_id, document=_dumped(event), recipients=recipients if reason else (), reason=reason)


def _reason(kind: str, payload: Mapping[str, object]) -> str:
    if kind == "complained":
        return "complained"
    return "bounced" if kind == "bounced" and payload.get("bounceType") == "Permanent" else ""


def _recipients(payload: Mapping[str, object], member: str) -> tuple[str, ...]:
    entries = payload.get(member)
    found = []
    for entry in entries[:_MOST_RECIPIENTS] if isinstance(entries, list) else ():
        address = entry.get("emailAddress") if isinstance(entry, dict) else None
        if isinstance(address, str):
            mailbox = comparison_form(_bare(address))
            # No address has control characters or halves of surrogate pairs.
            if mailbox and len(mailbox) <= MAX_ADDRESS_LENGTH and mailbox.isprintable():
                found.append(mailbox)
    return tuple(dict.fromkeys(found))


def _bare(address: str) -> str:
    """Without a name: `Ann <ann@example.com>`."""
    before, bracket, behind = address.rpartition("<")
    return behind.partition(">")[0] if bracket and (before or behind.endswith(">")) else address


def _email_id(mail: Mapping[str, object]) -> str | None:
    """The id of the row: the header's, which no tag replaces, else the tag's; None where that is none."""
    headers = mail.get("headers")
    for header in headers if isinstance(headers, list) else ():
        if isinstance(header, dict) and str(header.get("name", "")).lower() == _ENTITY:
            return _uuid(header.get("value"))
    tags = mail.get("tags")
    for name, values in tags.items() if isinstance(tags, dict) else ():
        if name.lower() == _ENTITY:
            return _uuid(values[0] if isinstance(values, list) and values else values)
    return None


def _uuid(value: object) -> str | None:
    text = value.strip() if isinstance(value, str) else ""
    return text.lower() if _UUID.fullmatch(text) else None


def _dumped(event: Mapping[str, object]) -> bytes:
    """As JSON that Postgres takes: without NUL, halves of surrogate pairs, and numbers that are none."""
    try:
        octets = orjson.dumps(event)
    except TypeError:  # an integer beyond 64 bits, half of a surrogate pair, or too deep
        try:
            written = json.dumps(event, allow_nan=False, ensure_ascii=False)
        except (ValueError, RecursionError):
            raise Unreadable from None
        octets = written.encode("utf-8", "replace")
    return without_nul(octets)
