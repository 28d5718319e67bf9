"""What a smart host's reply means: one of few verdicts, and by 5xx alone a mail fails for good."""

from __future__ import annotations

import itertools

import pytest

from relay.delivery.outcome import KINDS, Scope, Verdict
from relay.delivery.smtp_client import Reply
from relay.delivery.smtp_verdict import Phase, is_answer, is_too_many, of_reply

PHASES: tuple[Phase, ...] = ("MAIL", "RCPT", "DATA", "text")


def reply(codes: str) -> Reply:
    code, _, text = codes.partition(" ")
    return Reply(int(code), (text,))


def test_every_reply_has_a_verdict() -> None:
    for code, detail, phase in itertools.product(range(400, 600), ("", ".1.1", ".3.4", ".4.5", ".7.1"), PHASES):
        said = reply(f"{code} {code // 100}{detail} text" if detail else f"{code} text")
        failed = of_reply(said, phase, "message")
        assert failed.kind in KINDS
        assert failed.code == said.codes
        assert failed.verdict is not Verdict.UNCLEAR
        if failed.verdict is Verdict.PERMANENT:
            assert code >= 500
        if code < 500 and phase != "RCPT" and failed.verdict is not Verdict.NOT_THIS_MAIL:
            assert failed.verdict is Verdict.EITHER
        if failed.verdict is Verdict.NOT_THIS_MAIL:
            assert failed.pause > 0


@pytest.mark.parametrize(
    ("codes", "phase", "verdict", "kind"),
    [
        ("530 5.7.0", "MAIL", Verdict.NOT_THIS_MAIL, "credentials"),
        ("530", "RCPT", Verdict.NOT_THIS_MAIL, "credentials"),
        ("535 5.7.8", "text", Verdict.NOT_THIS_MAIL, "credentials"),
        ("503 5.5.1", "MAIL", Verdict.NOT_THIS_MAIL, "credentials"),
        ("503 5.5.1", "DATA", Verdict.EITHER, "server_error"),
        ("550 5.4.5", "text", Verdict.NOT_THIS_MAIL, "quota"),
        ("550 5.7.1", "MAIL", Verdict.NOT_THIS_MAIL, "denied"),
        ("550 5.7.1", "RCPT", Verdict.PERMANENT, "rejected"),
        ("550 5.7.1", "text", Verdict.PERMANENT, "rejected"),
        ("550", "MAIL", Verdict.PERMANENT, "rejected"),
        ("550 5.3.2", "text", Verdict.EITHER, "server_error"),
        ("552 5.3.4", "MAIL", Verdict.PERMANENT, "rejected"),
        ("421 4.7.0", "RCPT", Verdict.EITHER, "server_error"),
        ("450 4.2.1", "RCPT", Verdict.PASSING, "unknown"),
        ("450 4.7.1", "RCPT", Verdict.PASSING, "unknown"),
        ("450", "RCPT", Verdict.PASSING, "unknown"),
        ("451", "RCPT", Verdict.EITHER, "server_error"),
        ("451 4.7.1", "RCPT", Verdict.PASSING, "unknown"),
        ("451 4.3.0", "RCPT", Verdict.EITHER, "server_error"),
        ("452 4.2.2", "RCPT", Verdict.PASSING, "unknown"),
        ("451 4.7.1", "text", Verdict.EITHER, "server_error"),
        ("454", "text", Verdict.EITHER, "server_error"),
    ],
)
def test_code_and_phase_decide(codes: str, phase: Phase, verdict: Verdict, kind: str) -> None:
    failed = of_reply(reply(codes), phase, "")
    assert (failed.verdict, failed.kind) == (verdict, kind)


def test_a_sender_who_may_not_send_holds_up_no_other_domain() -> None:
    assert of_reply(reply("550 5.7.1"), "MAIL", "").scope is Scope.SENDER


@pytest.mark.parametrize(
    ("codes", "too_many"),
    [
        ("452 4.5.3 x", True),
        ("552 5.5.3 x", True),
        ("550 5.5.3 x", True),
        ("452", True),
        ("552", True),
        ("452 4.2.2 x", False),
        ("450", False),
        ("550 5.1.1 x", False),
    ],
)
def test_too_many_recipients(codes: str, too_many: bool) -> None:
    assert is_too_many(reply(codes)) is too_many


def test_what_can_be_the_answer_to_a_mail_and_to_nothing_else() -> None:
    for code, phase in itertools.product(range(200, 600), PHASES):
        expected = code >= 400 or (code // 100 == (3 if phase == "DATA" else 2))
        if code in (211, 214, 220, 221, 235, 334):
            expected = False
        assert is_answer(reply(str(code)), phase) is expected
