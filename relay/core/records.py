"""What passes between packages: the rows that the relay reads and writes, as frozen values (contract section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from relay.core.frozen import frozen


@frozen
class ApiKey:
    """One row of api_keys that may authenticate: it has a user.

    `domain` is the *name* that From must belong to, lower case, A-labels; None means unrestricted.
    """

    id: str
    user_id: str
    permission: str
    domain: str | None


@frozen
class StoredAttachment:
    """One element of emails.attachments. `content` is Base64 without line breaks."""

    filename: str
    content: str
    content_type: str | None = None
    content_id: str | None = None


@frozen
class EmailRow:
    """One row of emails, ready to insert. The id is made by us, so that an unclear commit can be looked up by it."""

    id: str
    user_id: str
    sender: str
    to: Sequence[str]
    cc: Sequence[str]
    bcc: Sequence[str]
    reply_to: Sequence[str]
    subject: str
    html: str
    text: str
    headers: Mapping[str, str]
    attachments: Sequence[StoredAttachment]
    tags: Sequence[tuple[str, str]]
    idempotency_key: str | None = None

    @property
    def recipients(self) -> tuple[str, ...]:
        """Every address that this row is delivered to, whatever the field."""
        return (*self.to, *self.cc, *self.bcc)
