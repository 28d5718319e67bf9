"""What became of one call to a provider, and what follows for the mail (contract section 6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

from relay.core.frozen import frozen


@frozen
class RefusedRecipient:
    """A recipient that a provider refused, of a mail that it took for others.

    `passing`: it may take it later. `code`: as `Failed.code`; `message`: its text, for the row and its events alone.
    """

    address: str
    passing: bool
    code: str
    message: str


@frozen
class Sent:
    """The provider has the mail. `message_id`: its name for the mail. `refused`: recipients that do not get it."""

    message_id: str
    refused: Sequence[RefusedRecipient] = ()


class Verdict(Enum):
    """What caused a failure, the mail or the region, and whether it is temporary."""

    #: This mail's, for good: rejected, malformed, an address that may not send.
    PERMANENT = "permanent"
    #: This mail's, and may pass: one more attempt is used up.
    PASSING = "passing"
    #: The account's, the region's or the network's: no attempt is used up, the region rests.
    NOT_THIS_MAIL = "not_this_mail"
    #: This mail's or the region's: other mails of the region decide (`relay.delivery.regions`).
    EITHER = "either"
    #: As EITHER, and it is not known whether the provider has the mail: the answer was lost after it was handed over.
    UNCLEAR = "unclear"


class Scope(Enum):
    """What rests after a failure that is not about one mail."""

    #: Everything that goes to the region.
    REGION = "region"
    #: What names the same configuration set there.
    CONFIGURATION_SET = "configuration_set"
    #: The domain of the sender, where other domains' mails pass; else the region.
    SENDER = "sender"


@frozen
class Failed:
    """The provider does not have the mail, or that is not known. `code`: the SDK's name of the error."""

    verdict: Verdict
    code: str
    message: str
    #: Seconds of the first rest; each further one without a success between is twice as long. 0: go on.
    pause: float = 0.0
    #: The class of the failure for metrics and logs, one of KINDS; empty: that of the verdict.
    kind: str = ""
    scope: Scope = Scope.REGION
    #: The right that is missing, as IAM names it, such as `ses:SendRawEmail`.
    action: str = ""


Outcome = Sent | Failed

#: Every class of a failure that a provider reports.
KINDS: Final = (
    "rejected",
    "unknown",
    "throttled",
    "quota",
    "paused",
    "suspended",
    "denied",
    "credentials",
    "clock",
    "tls",
    "configuration_set",
    "server_error",
    "unreachable",
    "unanswered",
)

#: Seconds of the first rest.
_THROTTLED: Final = 1.0
_QUOTA: Final = 900.0
_PAUSED: Final = 60.0
_AWAY: Final = 5.0
#: Longer, since each further try may be a copy.
_UNCLEAR: Final = 30.0

_THROTTLING_CODES: Final = frozenset(
    (
        "TooManyRequestsException",
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "SlowDown",
    )
)
_PAUSED_CODES: Final = frozenset(
    ("SendingPausedException", "AccountSendingPausedException", "ConfigurationSetSendingPausedException")
)
_DENIED_CODES: Final = frozenset(("AccessDeniedException", "AccessDenied", "UnauthorizedOperation"))
_CREDENTIAL_CODES: Final = frozenset(
    (
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "InvalidToken",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    )
)
#: This machine's clock is wrong, or was set while the call went on. The second: words that come with a code above.
_CLOCK_CODES: Final = frozenset(("RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture"))
_CLOCK_WORDS: Final = ("signature expired", "signature not yet current")
_SET_CODES: Final = frozenset(
    ("NotFoundException", "ConfigurationSetDoesNotExist", "ConfigurationSetDoesNotExistException")
)
#: The mail itself is refused, and always would be.
_REJECTING_CODES: Final = frozenset(
    (
        "BadRequestException",
        "MessageRejected",
        "MailFromDomainNotVerifiedException",
        "MailFromDomainNotVerified",
        "InvalidParameterValue",
        "InvalidParameterValueException",
        "InvalidParameterCombination",
        "SerializationException",
        "ValidationError",
        "ValidationException",
    )
)

#: Bad Gateway, Gateway Timeout (RFC 9110).
_GATEWAYS: Final = (502, 504)
#: Content Too Large: the mail's own size, whatever says so. And what may be about one request alone: Bad Request,
#: Unprocessable Content, Unavailable For Legal Reasons.
_TOO_LARGE: Final = 413
_OF_REQUESTS: Final = (400, 422, 451)

#: Where the words of SES's own text end: what follows may quote the mail, whose sender would choose the verdict on all.
_QUOTED: Final = re.compile(r"[.:;<\"'`(]")
_ACTION: Final = re.compile(r"to perform:?\s*[`'\"]?(ses:[A-Za-z]{1,60})\b|\b(ses:[A-Z][A-Za-z]{1,60})\b")
#: What raw content needs (the action that SES names where it names one).
_RAW_ACTION: Final = "ses:SendRawEmail"


def of_ses_error(status: int, code: str, message: str) -> Failed:
    """What an error of SES's API (version 2) says: code and text decide together, as SES documents them."""
    by_text = _of_text(code, message) if code == "MessageRejected" or code in _THROTTLING_CODES else None
    if by_text is not None:
        return by_text
    if code == "LimitExceededException":
        return _account(code, message, _QUOTA, kind="quota")
    if status == 429 or code in _THROTTLING_CODES:
        return _account(code, message, _THROTTLED, kind="throttled")
    if code in _PAUSED_CODES:
        of_set = code.startswith("ConfigurationSet") or "configuration set" in _own_words(message)
        scope = Scope.CONFIGURATION_SET if of_set else Scope.REGION
        return _account(code, message, _PAUSED, kind="paused", scope=scope)
    if code == "AccountSuspendedException":
        return _account(code, message, _PAUSED, kind="suspended")
    if code in _DENIED_CODES:
        named = _ACTION.search(message)
        action = (named[1] or named[2]) if named else _RAW_ACTION
        return Failed(Verdict.NOT_THIS_MAIL, code, message, _PAUSED, kind="denied", scope=Scope.SENDER, action=action)
    if code in _CLOCK_CODES | _CREDENTIAL_CODES or status in (401, 403):
        of_clock = code in _CLOCK_CODES or _own_words(message).startswith(_CLOCK_WORDS)
        return _account(code, message, _PAUSED, kind="clock" if of_clock else "credentials")
    if code in _SET_CODES:
        # The operator's mistake, for all mail of the domain; once it is mended they can leave.
        return _account(code, message, _PAUSED, kind="configuration_set", scope=Scope.CONFIGURATION_SET)
    if status >= 500:
        # Of a gateway it is no answer of SES's: what stands before it got none in time, or lost it.
        verdict = Verdict.UNCLEAR if status in _GATEWAYS else Verdict.EITHER
        return Failed(verdict, code, message, _AWAY, "server_error")
    if code in _REJECTING_CODES or status == _TOO_LARGE:
        return Failed(Verdict.PERMANENT, code, message, kind="rejected")
    if 200 <= status < 300:
        # A success without a name for the mail: cut off on the way, or from another server.
        return Failed(Verdict.UNCLEAR, code, message or "a success without a MessageId", _UNCLEAR, kind="unanswered")
    if code.startswith("HTTP"):
        # No error of SES's: a proxy's, or of another server at the endpoint.
        verdict = Verdict.EITHER if status in _OF_REQUESTS else Verdict.NOT_THIS_MAIL
        return Failed(verdict, code, message or "no answer of SES", _AWAY, kind="unreachable")
    return Failed(Verdict.PASSING, code, message, kind="unknown")


def of_silence(code: str, message: str, *, began: bool) -> Failed:
    """What it means that SES did not answer. `began`: it may have got the mail."""
    if began:
        return Failed(Verdict.UNCLEAR, code, message, _UNCLEAR, kind="unanswered")
    # No mail can be the cause where nothing of one was sent.
    return Failed(Verdict.NOT_THIS_MAIL, code, message, _AWAY, kind="unreachable")


def _of_text(code: str, message: str) -> Failed | None:
    """What the text of an error says that one code has for several causes."""
    words = _own_words(message)
    if "quota exceeded" in words:
        return _account(code, message, _QUOTA, kind="quota")
    if "sending rate exceeded" in words:
        return _account(code, message, _THROTTLED, kind="throttled")
    if "sending paused" in words:
        scope = Scope.CONFIGURATION_SET if "configuration set" in words else Scope.REGION
        return _account(code, message, _PAUSED, kind="paused", scope=scope)
    if "account" in words and "suspended" in words:
        return _account(code, message, _PAUSED, kind="suspended")
    return None


def _own_words(message: str) -> str:
    return _QUOTED.split(message.strip(), maxsplit=1)[0].lower()


def _account(code: str, message: str, pause: float, *, kind: str, scope: Scope = Scope.REGION) -> Failed:
    return Failed(Verdict.NOT_THIS_MAIL, code, message, pause, kind=kind, scope=scope)
