"""Bodies of SNS: whatever they are, they are refused or read; what is signed is what is used, and what is made of an
event of SES is JSON that Postgres takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from relay.core import json_document
from relay.web import ses_events, sns

TOKENS = (
    b'"Type":"Notification"',
    b'"Signature":"AA=="',
    b'"Message":"',
    b'"eventType":"Bounce"',
    b'"mail":{',
    b'"bouncedRecipients":[{"emailAddress":"',
    b'"headers":[{"name":"X-Entity-ID","value":"00000000-0000-4000-8000-000000000000"}]',
    b"\\u0000",
    b"\\ud800",
)
MAX_OCTETS = 800
_ID = "00000000-0000-4000-8000-000000000000"
_NAMES = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: bodies, and events of SES behind a zero."""
    message = dict.fromkeys(_NAMES, "x") | {"Type": "Notification", "Signature": "AA==", "SignatureVersion": "1"}
    for body in (message, message | {"Subject": ""}, message | {"Message": None}, message | {"Signature": "ä"}, {}):
        yield b"\x01" + json.dumps(body).encode()
    yield b"\x01" + b"[" * 500
    mail = {"messageId": "m", "headers": [{"name": "X-Entity-ID", "value": _ID}], "tags": {"X-Entity-ID": [_ID]}}
    bounce = {
        "bounceType": "Permanent",
        "bouncedRecipients": [{"emailAddress": " A <B@X.example>"}, 1, {"emailAddress": "a\ud800@x"}],
    }
    for event in (
        {"eventType": "Bounce", "mail": mail, "bounce": bounce},
        {"notificationType": "Complaint", "mail": mail, "complaint": {"complainedRecipients": "x"}},
        {"eventType": "Delivery", "mail": mail, "delivery": {"odd": "\0 \\u0000 \ud800", "big": 10**30}},
        {"eventType": "Open", "mail": mail | {"headers": [1, {"name": 1}]}, "open": []},
        {"eventType": ["Open"], "mail": 1},
        {"eventType": "Send", "mail": mail, "send": {"x": 1e308 * 10}},
    ):
        yield b"\x00" + json.dumps(event).encode()


def check(octets: bytes) -> None:
    """Raises whatever is no refusal."""
    if octets[:1] == b"\x00":
        _check_event(octets[1:].decode("utf-8", "replace"))
        return
    try:
        message = sns.parse(octets[1:], None)
    except sns.Malformed:
        return
    document = json_document.loads(octets[1:])
    values = (message.text, message.message_id, message.topic, message.type)
    assert values == tuple(document.get(name, "") for name in ("Message", "MessageId", "TopicArn", "Type"))
    for name, value in zip(("Message", "MessageId", "TopicArn", "Type"), values, strict=True):
        assert f"{name}\n{value}\n".encode() in message.signed


def _check_event(text: str) -> None:
    try:
        event = ses_events.event_of(text, "source")
    except ses_events.Unreadable:
        return
    if event is None:
        return
    document = json.loads(event.document)
    # An odd number of backslashes before it: a NUL, which no text of Postgres has.
    assert not re.search(r"(?<!\\)(\\\\)*\\u0000", event.document.decode())
    assert "\ud800" not in json.dumps(document, ensure_ascii=False)
    assert document["email_id"] == event.email_id
    assert document["recipients"] == list(event.recipients)
    for mailbox in event.recipients:
        assert mailbox == mailbox.strip().lower() != ""
