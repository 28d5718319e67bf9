"""A row of `emails` on its way out, as the claim read it (contract sections 3 and 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum

from relay.core import json_document
from relay.core.frozen import frozen
from relay.core.json_document import Json
from relay.postgres.driver import Row
from relay.postgres.outgoing import HELD_OCTETS


@frozen
class OutgoingAttachment:
    """One element of emails.attachments. `content` is Base64, maybe with blanks in it; rows of REST may have `path`
    instead, an http or https URL that is fetched when the mail is sent.
    """

    filename: str
    content: str | None
    path: str | None
    content_type: str | None
    content_id: str | None


class Flaw(Enum):
    """What no mail can be made of: a word for the row, and a text that explains it there."""

    HEADER_TOO_LARGE = "HeaderTooLarge", "recipients, subject and header fields take more than 256 KB"
    UNREADABLE = "UnreadableRow", "a JSON document of the row is nested too deeply, or holds a number without end"

    @property
    def code(self) -> str:
        """The word."""
        return self.value[0]

    @property
    def text(self) -> str:
        """The text."""
        return self.value[1]


@frozen
class OutgoingEmail:
    """A claimed row. Addresses and texts are as stored: rows that REST made may hold any text."""

    id: str
    user_id: str | None
    sender: str
    to: Sequence[str]
    cc: Sequence[str]
    bcc: Sequence[str]
    reply_to: Sequence[str]
    subject: str
    html: str
    text: str
    headers: Mapping[str, str]
    attachments: Sequence[OutgoingAttachment]
    #: Attempts that counted before this one.
    retries: int
    created_at: datetime
    #: Whether texts and attachments are too large to be held: they are empty here, and read in pieces.
    large: bool = False
    #: How much there is of texts and attachments at least: octets, as they are stored.
    stored_octets: int = 0
    #: What is wrong with the row, so that no mail can be made of it.
    flaw: Flaw | None = None
    #: Whether the provider may have the mail.
    unclear: bool = False

    def with_recipients(self, *, to: Sequence[str], cc: Sequence[str], bcc: Sequence[str]) -> OutgoingEmail:
        """The same mail to these."""
        return replace(self, to=to, cc=cc, bcc=bcc)

    @property
    def recipients(self) -> tuple[str, ...]:
        """All recipients of this mail, To first, then Cc, then Bcc."""
        return (*self.to, *self.cc, *self.bcc)


def user_of(row: Row) -> str | None:
    """The user whose mail a claimed row is, in the order of `Outgoing.claim`."""
    return _text(row[1])


def email_of(row: Row) -> OutgoingEmail:
    """A claimed row, in the order of `Outgoing.claim`. What is of a wrong type is left out. Raises nothing."""
    (email_id, user_id, sender, header, html, text, attachments, retries, created) = row[:9]
    text_octets, attachment_octets, unclear = row[9:12]
    large = text_octets > HELD_OCTETS or (attachments is None and attachment_octets > 0)
    fields: Json = None
    entries: Json = None
    flaw = None
    try:
        if header is None:
            flaw = Flaw.HEADER_TOO_LARGE
        else:
            fields = json_document.loads(header)
        if attachments is not None and not large:
            entries = json_document.loads(attachments)
    except ValueError:
        flaw = Flaw.UNREADABLE
    to, cc, bcc, reply_to, subject, headers = fields if isinstance(fields, list) else (None,) * 6
    return OutgoingEmail(
        id=str(email_id),
        user_id=user_id,
        sender=sender,
        to=_texts(to),
        cc=_texts(cc),
        bcc=_texts(bcc),
        reply_to=_texts(reply_to),
        subject=_text(subject) or "",
        html=html if html and not large else "",
        text=text if text and not large else "",
        headers={k: v for k, v in headers.items() if isinstance(v, str)} if isinstance(headers, dict) else {},
        attachments=tuple(
            OutgoingAttachment(
                filename=filename,
                content=_text(entry.get("content")),
                path=_text(entry.get("path")),
                content_type=_text(entry.get("content_type")),
                content_id=_text(entry.get("content_id")),
            )
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and isinstance(filename := entry.get("filename"), str)
        ),
        retries=retries or 0,
        created_at=created,
        large=large,
        stored_octets=text_octets + attachment_octets,
        flaw=flaw,
        unclear=unclear,
    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
