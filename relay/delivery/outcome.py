"""What became of one call to a provider, and what follows for the mail (contract section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider has the mail. `message_id`: the name by which it knows the mail."""

    message_id: str


class Verdict(Enum):
    """Whose trouble a failure is, and whether it may pass."""

    #: This mail's, for good: rejected, malformed, an address that may not send.
    PERMANENT = "permanent"
    #: This mail's, and may pass: one more attempt is used up.
    PASSING = "passing"
    #: The account's, the region's or the network's: no attempt is used up, the process slows down.
    NOT_THIS_MAIL = "not_this_mail"
    #: Nobody knows whether the provider has the mail: the answer was lost after the mail had been handed over.
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider does not have the mail, or nobody knows. `code`: the SDK's name of the error."""

    verdict: Verdict
    code: str
    message: str
    #: Seconds for which nothing else should be tried with this account; 0: go on.
    pause: float = 0.0


Outcome = Sent | Failed

#: Seconds.
_THROTTLED: Final = 1.0
_QUOTA: Final = 900.0
_PAUSED: Final = 60.0
_AWAY: Final = 5.0

_ACCOUNT_CODES: Final = frozenset(
    (
        "AccountSuspendedException",
        "SendingPausedException",
        "AccessDeniedException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "ExpiredTokenException",
        "MissingAuthenticationTokenException",
        "IncompleteSignature",
        "OptInRequired",
    )
)


def of_ses_error(status: int, code: str, message: str) -> Failed:
    """What an error of SES's API (version 2) says: code and text decide together, as SES documents them."""
    text = message.lower()
    if "daily message quota exceeded" in text:
        return Failed(Verdict.NOT_THIS_MAIL, code, message, _QUOTA)
    if status == 429 or code in ("TooManyRequestsException", "ThrottlingException", "Throttling"):
        return Failed(Verdict.NOT_THIS_MAIL, code, message, _THROTTLED)
    if code in _ACCOUNT_CODES or "sending paused" in text or "account is suspended" in text:
        return Failed(Verdict.NOT_THIS_MAIL, code, message, _PAUSED)
    if code == "LimitExceededException":
        return Failed(Verdict.NOT_THIS_MAIL, code, message, _QUOTA)
    if code == "NotFoundException":
        # No such configuration set: the operator's mistake, for all mail of the domain.
        return Failed(Verdict.PASSING, code, message)
    if status >= 500:
        return Failed(Verdict.PASSING, code, message, _AWAY)
    return Failed(Verdict.PERMANENT, code, message)
