"""A row of `emails` on its way out, as the claim read it (contract sections 3 and 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum

from relay.core.frozen import frozen


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
