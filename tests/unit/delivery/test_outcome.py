"""What each error that SES documents means for the mail: by code and by text."""

from __future__ import annotations

import pytest

from relay.delivery.outcome import KINDS, Scope, Verdict, of_ses_error, of_silence

ABOUT_MAIL, PASSING, OTHERS, EITHER, UNCLEAR = (
    Verdict.PERMANENT,
    Verdict.PASSING,
    Verdict.NOT_THIS_MAIL,
    Verdict.EITHER,
    Verdict.UNCLEAR,
)


@pytest.mark.parametrize(
    ("status", "code", "message", "verdict", "kind"),
    [
        (429, "TooManyRequestsException", "Too many requests have been made.", OTHERS, "throttled"),
        (429, "HTTP429", "", OTHERS, "throttled"),
        (400, "ThrottlingException", "Maximum sending rate exceeded.", OTHERS, "throttled"),
        (400, "Throttling", "Rate exceeded", OTHERS, "throttled"),
        (400, "ThrottlingException", "Daily message quota exceeded.", OTHERS, "quota"),
        (400, "Throttling", "Daily message quota exceeded", OTHERS, "quota"),
        (429, "TooManyRequestsException", "Daily message quota exceeded.", OTHERS, "quota"),
        (400, "LimitExceededException", "There are too many instances of the resource type.", OTHERS, "quota"),
        (400, "AccountSuspendedException", "The account has been permanently restricted.", OTHERS, "suspended"),
        (400, "SendingPausedException", "The account's ability to send email is currently paused.", OTHERS, "paused"),
        (400, "MessageRejected", "Sending paused for this account. For more information, see …", OTHERS, "paused"),
        (400, "MessageRejected", "Your account is suspended.", OTHERS, "suspended"),
        (400, "MessageRejected", "Email address is not verified. The following …", ABOUT_MAIL, "rejected"),
        (400, "MessageRejected", "Illegal filename", ABOUT_MAIL, "rejected"),
        (400, "MailFromDomainNotVerifiedException", "The MAIL FROM domain is not verified.", ABOUT_MAIL, "rejected"),
        (400, "BadRequestException", "Duplicate header 'Subject'.", ABOUT_MAIL, "rejected"),
        (404, "NotFoundException", "Configuration set <x> does not exist.", OTHERS, "configuration_set"),
        (
            403,
            "AccessDeniedException",
            "User: arn:… is not authorized to perform: `ses:SendRawEmail'",
            OTHERS,
            "denied",
        ),
        (403, "UnrecognizedClientException", "The security token is invalid.", OTHERS, "credentials"),
        (403, "InvalidSignatureException", "The request signature we calculated does not match", OTHERS, "credentials"),
        (403, "InvalidSignatureException", "Signature expired: 2026… is now earlier than 2026…", OTHERS, "clock"),
        (403, "InvalidSignatureException", "Signature not yet current: 2026… is still later …", OTHERS, "clock"),
        (403, "SignatureDoesNotMatch", "Signature expired", OTHERS, "clock"),
        (403, "RequestTimeTooSkewed", "", OTHERS, "clock"),
        (400, "RequestExpired", "", OTHERS, "clock"),
        (403, "ExpiredTokenException", "The security token has expired", OTHERS, "credentials"),
        (403, "MissingAuthenticationTokenException", "Missing Authentication Token", OTHERS, "credentials"),
        (401, "HTTP401", "", OTHERS, "credentials"),
        (400, "ExpiredToken", "", OTHERS, "credentials"),
        (500, "InternalFailure", "", EITHER, "server_error"),
        (500, "InternalServiceErrorException", "", EITHER, "server_error"),
        (502, "HTTP502", "", UNCLEAR, "server_error"),
        (503, "ServiceUnavailable", "", EITHER, "server_error"),
        (504, "HTTP504", "", UNCLEAR, "server_error"),
        (599, "HTTP599", "", EITHER, "server_error"),
        (200, "HTTP200", "", UNCLEAR, "unanswered"),
        (202, "HTTP202", "", UNCLEAR, "unanswered"),
        (301, "HTTP301", "", OTHERS, "unreachable"),
        (404, "HTTP404", "", OTHERS, "unreachable"),
        (407, "HTTP407", "", OTHERS, "unreachable"),
        # What a server in between says of a request is about this mail where others pass.
        (400, "HTTP400", "", EITHER, "unreachable"),
        (422, "HTTP422", "", EITHER, "unreachable"),
        (451, "HTTP451", "", EITHER, "unreachable"),
        # The size is the mail's own: a customer's large mail stops no other.
        (413, "HTTP413", "", ABOUT_MAIL, "rejected"),
        (413, "RequestEntityTooLarge", "", ABOUT_MAIL, "rejected"),
        (400, "ANewException", "nobody knows it", PASSING, "unknown"),
    ],
)
def test_code_and_text_decide(status: int, code: str, message: str, verdict: Verdict, kind: str) -> None:
    failed = of_ses_error(status, code, message)
    assert (failed.verdict, failed.kind) == (verdict, kind)
    assert failed.kind in KINDS
    assert (failed.pause > 0) == (verdict not in (ABOUT_MAIL, PASSING))


@pytest.mark.parametrize("status", range(500, 600))
def test_every_5xx_is_the_mails_or_the_regions(status: int) -> None:
    """After a gateway's error it is not known whether SES has the mail."""
    assert of_ses_error(status, f"HTTP{status}", "").verdict is (UNCLEAR if status in (502, 504) else EITHER)


@pytest.mark.parametrize("code", ["MessageRejected", "BadRequestException", "ThrottlingException"])
@pytest.mark.parametrize(
    "phrase", ["Sending paused for this account", "Daily message quota exceeded", "Your account is suspended"]
)
@pytest.mark.parametrize("before", ["Email address is not verified. Identities: ", "Illegal address <", "Bad name '"])
def test_a_text_that_quotes_the_mail_says_nothing_about_the_account(code: str, phrase: str, before: str) -> None:
    """SES repeats addresses, with their names: a sender would stop all mail of the region by a display name."""
    failed = of_ses_error(400, code, f"{before}{phrase} <a@b.example>")
    assert failed.kind == ("throttled" if code == "ThrottlingException" else "rejected")


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("User: arn:aws:iam::1:user/u is not authorized to perform: ses:SendEmail on resource: x", "ses:SendEmail"),
        ("`arn:aws:ses:us-east-1:1:identity/x' … not authorized to perform `ses:SendRawEmail' on", "ses:SendRawEmail"),
        ("arn:aws:ses:us-east-1:1:identity/x", "ses:SendRawEmail"),
        ("", "ses:SendRawEmail"),
        ("not authorized to perform: ses:" + "A" * 1000, "ses:SendRawEmail"),
    ],
)
def test_a_missing_right_is_named(message: str, action: str) -> None:
    failed = of_ses_error(403, "AccessDeniedException", message)
    assert (failed.action, failed.scope) == (action, Scope.SENDER)


def test_a_configuration_set_that_is_paused_is_not_the_account() -> None:
    failed = of_ses_error(400, "SendingPausedException", "Sending is paused for the configuration set x.")
    assert failed.scope is Scope.CONFIGURATION_SET
    assert of_ses_error(400, "SendingPausedException", "The account's ability …").scope is Scope.REGION


def test_silence() -> None:
    assert of_silence("ConnectionRefusedError", "", began=False).verdict is OTHERS
    assert of_silence("TimeoutError", "", began=True).verdict is UNCLEAR
