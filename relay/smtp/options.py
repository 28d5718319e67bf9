"""What the operator decided, as far as the dialogue goes."""

from __future__ import annotations

from functools import lru_cache

from config.settings import RecipientRule
from relay.core.frozen import frozen


@frozen
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

    def extensions(self, *, in_the_clear: bool) -> tuple[str, ...]:
        """What the answer to EHLO offers. `in_the_clear`: the client could encrypt and does not, yet."""
        return (
            *_of_limits(self.max_message_size, self.max_messages, self.max_recipients),
            "STARTTLS" if in_the_clear else "AUTH PLAIN LOGIN",
        )


@lru_cache(maxsize=16)
def _of_limits(size: int, messages: int, recipients: int) -> tuple[str, ...]:
    """All of them but for encryption and AUTH. `size`: octets that a message may have."""
    # RFC 9422: values have six digits at most.
    values = {"MAILMAX": messages, "RCPTMAX": recipients}
    named = [f"{name}={value}" for name, value in values.items() if 0 < value < 1_000_000]
    return (
        f"SIZE {size}",
        "8BITMIME",
        "PIPELINING",
        "ENHANCEDSTATUSCODES",
        "SMTPUTF8",
        "CHUNKING",
        " ".join(("LIMITS", *named)),
    )
