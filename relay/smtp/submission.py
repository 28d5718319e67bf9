"""One message on its way from the dialogue to the row: what the SMTP side hands over, and what it may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from config.settings import RecipientRule
from relay.core.frozen import frozen
from relay.core.outcomes import LoginFailure, MessageLimit
from relay.core.records import ApiKey
from relay.smtp.replies import Reply
from relay.smtp.spool import Body


@frozen
class Login:
    """The API key that a connection belongs to after AUTH."""

    #: Lower-case hex SHA-256 of the key (contract section 3); the key itself is forgotten at once.
    token_hash: str
    key: ApiKey


@frozen
class Submission:
    """A complete message with its envelope."""

    login: Login
    #: Forward-paths in their order, in the stored form (relay.core.address), each once.
    recipients: tuple[str, ...]
    rule: RecipientRule
    body: Body
    #: For the log.
    connection_id: str
    #: Local part, without its quotes, and domain, as they were given; both empty for the null path. SES makes its own:
    #: this one is for a From that holds a name alone.
    reverse_path: tuple[str, str] = ("", "")


@dataclass(slots=True)
class Verdict:
    """What became of a submission."""

    reply: Reply
    #: For the log and the metric: `queued`, `repeated`, or why it was refused. No address, no text of the message.
    outcome: str
    #: The (first) row of the message, stored now or before; empty where there is none.
    email_id: str = ""
    #: Rows that were stored just now and need a job.
    stored: tuple[str, ...] = ()
    #: Octets and recipients of the envelope, for the log: the dialogue adds them.
    size: int = 0
    recipients: int = 0


class Services(Protocol):
    """What the dialogue asks for. Both may block the greenlet; neither raises but for bugs."""

    def authenticate(self, password: str) -> Login | LoginFailure:
        """The login that a password opens, or why it opens none: WRONG_KEY, or UNAVAILABLE when that is unknown."""

    def submit(self, submission: Submission) -> Verdict:
        """Stores a message, or says why not. A 250 means that its row is committed."""


class Limits(Protocol):
    """How much one client may. Both may block the greenlet."""

    def authenticate(self, password: str, look_up: Callable[[str], Login | LoginFailure]) -> Login | LoginFailure:
        """What `look_up` says of a password, or TOO_MANY_FAILURES where it is not asked, or must not be believed."""

    def admit(self, key_id: str) -> MessageLimit | None:
        """Counts a message that is about to be sent with this API key; which limit keeps it from that, if one does."""
