"""The way from raw bytes to a `Message`."""

from __future__ import annotations

import base64
from email import message_from_bytes
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any, cast

from relay.address import BadAddress, normalise
from relay.mail.message import Fault, Limits, Message, Unusable
from relay.records import StoredAttachment

_NOT_STORED = frozenset(
    "from to cc bcc subject reply-to mime-version message-id date received return-path delivered-to x-original-to "
    "dkim-signature idempotency-key x-opensend-idempotency-key resend-idempotency-key x-opensend-tag".split()
)
_KEY_FIELDS = ("Idempotency-Key", "X-OpenSend-Idempotency-Key", "Resend-Idempotency-Key")


def parse(raw: bytes, limits: Limits | None = None) -> Message:
    """The message that `raw` (RFC 5322, line ends CRLF or LF) means.

    Raises Unusable and nothing else.
    """
    limits = limits or Limits()
    message = cast(EmailMessage, message_from_bytes(raw, policy=SMTP))
    senders = _mailboxes(message, "From")
    from_addresses = _bare(senders, limits)
    if not from_addresses:
        raise Unusable(Fault.NO_FROM, "No usable From address")
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    key = next((str(message[name]).strip() for name in _KEY_FIELDS if message[name]), None)
    if key is not None and not 1 <= len(key) <= 256:
        raise Unusable(Fault.BAD_IDEMPOTENCY_KEY, "Idempotency-Key must have 1 to 256 characters")
    return Message(
        sender=from_addresses[0],
        from_addresses=from_addresses,
        to=_bare(_mailboxes(message, "To"), limits),
        cc=_bare(_mailboxes(message, "Cc"), limits),
        bcc=_bare(_mailboxes(message, "Bcc"), limits),
        reply_to=_bare(_mailboxes(message, "Reply-To"), limits),
        subject=str(message["Subject"] or "").replace("\0", ""),
        text=_content(text),
        html=_content(html),
        headers={
            name: str(value)
            for name, value in message.items()
            if name.lower() not in _NOT_STORED and not name.lower().startswith("content-") and str(value).isascii()
        },
        attachments=tuple(
            StoredAttachment(
                part.get_filename() or "attachment",
                base64.b64encode(cast(bytes, part.get_payload(decode=True) or b"")).decode("ascii"),
                part.get_content_type(),
            )
            for part in message.iter_attachments()
        )
        if message.is_multipart()
        else (),
        message_id=str(message["Message-ID"]).strip() if message["Message-ID"] else None,
        idempotency_key=key,
        tags=tuple(_tag(str(value)) for value in message.get_all("X-OpenSend-Tag", [])),
        parser="fallback:plain",
    )


def _tag(value: str) -> tuple[str, str]:
    name, found, rest = value.strip().partition("=")
    if not found or not name:
        raise Unusable(Fault.BAD_TAG, "X-OpenSend-Tag must be name=value")
    return name.strip(), rest.strip()


def _mailboxes(message: EmailMessage, name: str) -> list[Address]:
    return [address for header in message.get_all(name, []) for address in cast(Any, header).addresses]


def _bare(mailboxes: list[Address], limits: Limits) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for mailbox in mailboxes:
        try:
            found[normalise(mailbox.username, mailbox.domain, allow_utf8_local_part=limits.allow_utf8_local_parts)] = (
                None
            )
        except BadAddress as error:
            if error.utf8_local_part:
                raise Unusable(Fault.UTF8_LOCAL_PART, "A local part is not ASCII") from error
    return tuple(found)


def _content(part: Any) -> str:
    if part is None:
        return ""
    payload = cast(bytes, part.get_payload(decode=True) or b"")
    return payload.decode(part.get_content_charset("utf-8"), "replace").replace("\r\n", "\n").replace("\0", "")
