"""What the operator decided, as far as the dialogue goes."""

from __future__ import annotations

from dataclasses import dataclass

from relay.records import RecipientRule


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator decided, as far as the dialogue goes."""

    hostname: str
    #: Octets; advertised by SIZE.
    max_message_size: int
    max_recipients: int
    recipient_rule: RecipientRule = RecipientRule.MERGE
    allow_utf8_local_parts: bool = False
    #: A certificate is configured: STARTTLS is offered, and AUTH needs it.
    tls_available: bool = False
    #: Errors of syntax or order that one connection may make before it is closed.
    max_errors: int = 20
    #: Failed AUTHs that one connection may make before it is closed.
    max_auth_failures: int = 5
    #: Commands that a connection may send before it has authenticated.
    max_before_auth: int = 100
    #: Messages that a connection may send; 0: any number.
    max_messages: int = 0
    #: Octets of a message that stay in memory.
    spool_threshold: int = 1_000_000
    spool_directory: str | None = None
