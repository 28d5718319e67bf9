"""A message as its sender meant it: what `relay.mail.parse` makes of raw bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum

from relay.core.frozen import frozen
from relay.core.records import StoredAttachment


@frozen
class Message:
    """One parsed message. Text is Unicode without NUL and without lone surrogates; addresses are `local@domain`, bare.

    Addresses appear once per field, in order, with the domain as lower-case A-labels (IDNA 2008), at most 512
    characters.
    """

    #: For emails."from": ASCII, `Name <a@b.c>` or `a@b.c`; a display name that isn't ASCII is an RFC 2047 encoded word.
    sender: str
    #: Every address of every From field, normalised: all of them must belong to the key's domain.
    from_addresses: tuple[str, ...]
    to: tuple[str, ...] = ()
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: tuple[str, ...] = ()
    subject: str = ""
    html: str = ""
    text: str = ""
    #: Which headers, and in what form: contract section 3, "A row that can be sent".
    headers: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[StoredAttachment, ...] = ()
    #: As written, without white space; None when the message has none. Only for deduplication; never stored.
    message_id: str | None = None
    #: From Idempotency-Key, X-OpenSend-Idempotency-Key or Resend-Idempotency-Key, 1-256 characters.
    idempotency_key: str | None = None
    #: From X-OpenSend-Tag.
    tags: tuple[tuple[str, str], ...] = ()
    #: Names of the headers that did not fit among those that SES takes; logged, never their values.
    dropped_headers: tuple[str, ...] = ()
    #: What read the structure, for the metric: `shortcut` where there was none to read, `flanker`, or
    #: `fallback:<cause>` with a cause of boundary, charset, limits, malformed, size, structure (docs/mime.md).
    parser: str = "flanker"
    #: Entries of To, Cc and Bcc that are no addresses, or none that can be sent to.
    left_out: int = 0
    #: By lower-case name, the addresses in Sender, Resent-From and Resent-Sender, in the stored form; none where that
    #: is not certain. A key that is restricted to a domain keeps such a header only where all of them are in it.
    header_senders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Parts that are not shown: AMP for Email, beside other forms of the same text. Counted.
    dropped_parts: int = 0


@frozen
class Limits:
    """How far a message is followed before the rest is kept as it is. Sizes are octets."""

    #: Parts in all, containers included; what lies beyond becomes one attachment.
    max_parts: int = 1000
    #: Containers within containers; what lies deeper becomes one attachment.
    max_part_depth: int = 120
    #: All attachments together, counted after Base64 without line breaks; beyond it the message is Unusable.
    max_attachment_octets: int = 40 * 1024 * 1024
    #: Whether an address may have a local part that isn't ASCII (contract section 3: SES can't send to it).
    allow_utf8_local_parts: bool = False


class Fault(StrEnum):
    """Why a message can't be taken. Damage to MIME is never one of them."""

    NO_FROM = "no_from"
    BAD_TAG = "bad_tag"
    BAD_IDEMPOTENCY_KEY = "bad_idempotency_key"
    UTF8_LOCAL_PART = "utf8_local_part"
    ATTACHMENTS_TOO_LARGE = "attachments_too_large"
    TOO_MANY_ADDRESSES = "too_many_addresses"
    HEADER_TOO_LARGE = "header_too_large"


class Unusable(Exception):
    """The message is at fault and a repeat of it will be too: always a 5xx.

    `detail` may be said to the client: it holds only what the client itself sent, ASCII, at most 200 characters.
    """

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault.value)
        self.fault = fault
        self.detail = detail
