"""A smart host that answers in every odd way at every phase: what becomes of a mail, and what the host has of it.

The host is a stand-in (tests/support/smtp_double.py) that keeps a ledger; the connections are TCP, with TLS and AUTH.
"""

from __future__ import annotations

import math
import re
import ssl
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay.core.errors import TooLate
from relay.delivery import smtp_connections, smtp_provider
from relay.delivery.large_mails import Busy
from relay.delivery.outcome import Failed, Outcome, Sent, Verdict
from relay.delivery.permit import Lag, Permit
from tests.support.certificates import write_pair
from tests.support.smart_host import handover, provider_of
from tests.support.smtp_double import (
    CLOSE,
    ENDLESS_LINE,
    ENDLESS_REPLY,
    HALF,
    HANG,
    PASSWORD,
    PHASES,
    RESET,
    RUBBISH,
    Odd,
    SmtpDouble,
)

OPENING = PHASES[: PHASES.index("MAIL")]
REPLIES = ("450 4.2.1 <to@x.example> later", "451 4.3.0 trouble", "550 5.1.1 <to@x.example> no", "554 5.7.1 spam")
BREAKS = (RESET, CLOSE, HALF, RUBBISH, ENDLESS_LINE, ENDLESS_REPLY, "421 4.3.2 closing", "354 go on", "999 odd")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_pair(tmp_path_factory.mktemp("smart-host"))


@pytest.fixture(scope="module")
def context(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def judged(outcome: Outcome, odd: Odd, took: int) -> str:
    """What is wrong with the outcome of a mail that the host took so many times; empty where nothing is."""
    if isinstance(outcome, Sent):
        return "" if took == 1 and outcome.message_id.startswith("D") else f"sent, and {took} taken"
    if not re.fullmatch(r"[2-5][0-9]{2}( [245]\.[0-9]+\.[0-9]+)?|[A-Za-z]+", outcome.code):
        return f"a code with a text: {outcome.code}"
    if PASSWORD in outcome.message:
        return "a password in a message"
    if outcome.verdict is Verdict.UNCLEAR:
        return "" if odd.phase in ("end", "text") else "unclear before the end of data"
    if took:
        return f"{outcome.verdict} for a mail that was taken"
    if odd.phase in OPENING:
        return "" if outcome.verdict is Verdict.NOT_THIS_MAIL else f"{outcome.verdict} before any mail"
    if outcome.verdict is Verdict.PERMANENT and not odd.answer.startswith("5"):
        return "failed for good without a 5xx"
    return ""


def tried(odd: Odd, offers: Sequence[str], context: ssl.SSLContext, certificate: tuple[str, str], kept: bool) -> str:
    """One mail that meets something odd, one after it and, where the connection is a kept one, one before it."""
    # TLS is tried by the phases that it is about; what comes behind them is the same with it and without.
    with SmtpDouble(context=context if odd.phase in OPENING else None, offers=tuple(offers)) as double:
        provider = provider_of(double, certificate)
        first, second, third = (b"Subject: %d\r\n\r\n" % number for number in range(3))
        others = [(first, provider.send(handover(content=first)))] if kept else []
        double.odd = odd
        outcome = provider.send(handover(content=second))
        others.append((third, provider.send(handover(content=third))))
        provider.close()
        double.wait_for_ends()
        took = Counter(taken.octets for taken in double.taken)
        if not all(isinstance(found, Sent) and took[octets] == 1 for octets, found in others):
            return "another mail is not sent, or not once"
        return judged(outcome, odd, took[second])


CASES = [
    (Odd(phase, answer, taken), offers, kept)
    for phase in PHASES
    for answer in (*REPLIES, *BREAKS)
    if (phase, answer[:3]) != ("DATA", "354")
    # A host that says 421 says that it has not taken the mail.
    for taken in ((False, True) if phase == "end" and answer in BREAKS and answer[:3] != "421" else (False,))
    for offers in (("PIPELINING", "SIZE 50000000"), ())[: 1 if phase in OPENING else 2]
    for kept in ((False, True) if phase in PHASES[len(OPENING) :] else (False,))
]


def test_whatever_a_host_answers_no_mail_is_lost_or_doubled(
    context: ssl.SSLContext, certificate: tuple[str, str]
) -> None:
    wrong = {}
    for odd, offers, kept in CASES:
        found = tried(odd, offers, context, certificate, kept)
        if found:
            wrong[(odd, bool(offers), kept)] = found
    assert wrong == {}


def test_a_host_that_hangs_at_any_phase(
    context: ssl.SSLContext, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_provider, "OPENING_SECONDS", 3.0)
    monkeypatch.setattr(smtp_provider, "DATA_SECONDS", 3.0)
    monkeypatch.setattr(smtp_provider, "CALL_SECONDS", 3.5)
    cases = [(phase, offers) for phase in PHASES for offers in (("PIPELINING",), ())]
    with ThreadPoolExecutor(len(cases)) as pool:
        found = pool.map(lambda case: tried(Odd(case[0], HANG), case[1], context, certificate, False), cases)
        assert {case: wrong for case, wrong in zip(cases, found, strict=True) if wrong} == {}


def test_what_the_verdict_is(context: ssl.SSLContext, certificate: tuple[str, str]) -> None:
    expected = {
        ("AUTH", "535 5.7.8 no"): (Verdict.NOT_THIS_MAIL, "credentials"),
        ("AUTH", "454 4.7.0 later"): (Verdict.NOT_THIS_MAIL, "server_error"),
        ("STARTTLS", "454 4.7.0 later"): (Verdict.NOT_THIS_MAIL, "server_error"),
        ("STARTTLS", "500 what"): (Verdict.NOT_THIS_MAIL, "tls"),
        ("handshake", RUBBISH): (Verdict.NOT_THIS_MAIL, "tls"),
        ("banner", "554 5.7.1 go away"): (Verdict.NOT_THIS_MAIL, "unreachable"),
        ("MAIL", "530 5.7.0 login"): (Verdict.NOT_THIS_MAIL, "credentials"),
        ("MAIL", "550 5.7.1 not you"): (Verdict.NOT_THIS_MAIL, "denied"),
        ("MAIL", "550 5.4.5 quota"): (Verdict.NOT_THIS_MAIL, "quota"),
        ("MAIL", "552 5.3.4 large"): (Verdict.PERMANENT, "rejected"),
        ("MAIL", "451 4.3.0 later"): (Verdict.EITHER, "server_error"),
        ("RCPT", "550 5.1.1 nobody"): (Verdict.PERMANENT, "rejected"),
        ("RCPT", "450 4.2.1 full"): (Verdict.PASSING, "unknown"),
        ("RCPT", "451 4.3.0 later"): (Verdict.EITHER, "server_error"),
        ("DATA", "554 5.7.1 no"): (Verdict.PERMANENT, "rejected"),
        ("text", "552 5.3.4 large"): (Verdict.PERMANENT, "rejected"),
        ("end", "554 5.7.1 spam"): (Verdict.PERMANENT, "rejected"),
        ("end", "451 4.3.0 later"): (Verdict.EITHER, "server_error"),
        ("end", CLOSE): (Verdict.UNCLEAR, "unanswered"),
        ("end", "354 go on"): (Verdict.UNCLEAR, "unanswered"),
        ("DATA", CLOSE): (Verdict.EITHER, "unreachable"),
    }
    found = {}
    for phase, answer in expected:
        with SmtpDouble(context=context) as double:
            double.odd = Odd(phase, answer)
            outcome = provider_of(double, certificate).send(handover())
            assert isinstance(outcome, Failed)
            found[(phase, answer)] = (outcome.verdict, outcome.kind)
    assert found == expected


@pytest.mark.parametrize("phase", ["RCPT", "end"])
def test_what_a_reply_says_is_for_the_row_and_without_secrets(
    context: ssl.SSLContext, certificate: tuple[str, str], phase: str
) -> None:
    for text, shown in (("no such user\x07", "no such user?"), (f"user {PASSWORD} unknown", "")):
        with SmtpDouble(context=context) as double:
            double.odd = Odd(phase, f"550 5.1.1 {text}")
            outcome = provider_of(double, certificate).send(handover())
            assert isinstance(outcome, Failed)
            assert outcome.code == "550 5.1.1"
            assert outcome.message == f"{'text' if phase == 'end' else phase}: 550 5.1.1 {shown}".strip()


# Who we speak to.


@pytest.mark.parametrize("kind", ["starttls", "implicit"])
def test_a_host_with_another_certificate_gets_neither_password_nor_mail(
    certificate: tuple[str, str], tmp_path: Path, kind: str
) -> None:
    heard: list[str] = []
    unknown, of_another_name = write_pair(tmp_path / "1"), write_pair(tmp_path / "2", name="other.example")
    for pair, trusted in ((unknown, certificate), (of_another_name, of_another_name)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        with SmtpDouble(context=context, implicit=kind == "implicit", heard=heard.append) as double:
            outcome = provider_of(double, trusted).send(handover())
            assert isinstance(outcome, Failed)
            assert (outcome.verdict, outcome.kind) == (Verdict.NOT_THIS_MAIL, "tls")
            assert outcome.code == "SSLCertVerificationError"
            assert double.taken == []
    assert {command.split()[0] for command in heard} <= {"EHLO", "STARTTLS"}


def test_a_host_that_does_not_offer_starttls_gets_neither_password_nor_mail(certificate: tuple[str, str]) -> None:
    """As where an attacker between the two takes STARTTLS out of the reply."""
    heard: list[str] = []
    with SmtpDouble(heard=heard.append) as double:
        outcome = provider_of(double, certificate, smarthost_tls="starttls").send(handover())
        assert isinstance(outcome, Failed)
        assert (outcome.verdict, outcome.kind, outcome.code) == (Verdict.NOT_THIS_MAIL, "tls", "NoStartTls")
        assert heard == ["EHLO client.example"]


def test_what_is_said_ahead_of_tls_is_no_part_of_it(context: ssl.SSLContext, certificate: tuple[str, str]) -> None:
    """CVE-2011-0411 the other way round: replies smuggled in behind the one to STARTTLS."""
    with SmtpDouble(context=context) as double:
        double.odd = Odd("STARTTLS", "220 2.0.0 Go on\r\n250-smuggled\r\n250 AUTH PLAIN")
        outcome = provider_of(double, certificate).send(handover())
        assert isinstance(outcome, Failed)
        assert (outcome.verdict, outcome.code) == (Verdict.NOT_THIS_MAIL, "TextBeforeTls")


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN", "CRAM-MD5 LOGIN", "=LOGIN PLAIN"])
def test_authentication(context: ssl.SSLContext, certificate: tuple[str, str], mechanisms: str) -> None:
    with SmtpDouble(context=context, mechanisms=mechanisms) as double:
        assert isinstance(provider_of(double, certificate).send(handover()), Sent)
        wrong = provider_of(double, certificate, smarthost_password="wrong").send(handover())
        assert isinstance(wrong, Failed)
        assert (wrong.verdict, wrong.kind, wrong.code) == (Verdict.NOT_THIS_MAIL, "credentials", "535 5.7.8")
        assert len(double.taken) == 1
    with SmtpDouble(context=context, mechanisms="CRAM-MD5") as double:
        outcome = provider_of(double, certificate).send(handover())
        assert isinstance(outcome, Failed)
        assert (outcome.kind, outcome.code) == ("credentials", "NoAuth")


# Connections.


def test_connections_are_kept_and_closed_after_so_many_mails(
    context: ssl.SSLContext, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_connections, "MOST_MAILS", 5)
    with SmtpDouble(context=context) as double:
        provider = provider_of(double, certificate)
        for _ in range(12):
            assert isinstance(provider.send(handover()), Sent)
        assert (double.connections, len(double.taken)) == (3, 12)
        provider.close()


def test_what_a_host_says_unasked_is_no_reply_to_the_next_mail(certificate: tuple[str, str]) -> None:
    """Replies ahead of their commands would have a mail count as sent that the host has never seen."""
    ahead = "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 Go on\r\n250 2.0.0 Ok: queued as X"
    with SmtpDouble() as double:
        provider = provider_of(double, certificate)
        double.odd = Odd("end", f"250 2.0.0 Ok: queued as D1\r\n{ahead}", taken=True)
        assert [provider.send(handover()) for _ in range(2)] == [Sent("D1", ()), Sent("D2", ())]
        assert (len(double.taken), double.connections) == (2, 2)
        provider.close()


def test_who_gets_no_connection_waits_in_postgres(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp_provider, "DATA_SECONDS", smtp_provider.OPENING_SECONDS)
    with SmtpDouble() as double:
        provider = provider_of(double, certificate, connections=1)
        provider._places.acquire()
        with pytest.raises(Busy):
            provider.send(handover())
        provider._places.release()
        assert isinstance(provider.send(handover()), Sent)


def test_a_mail_that_is_late_for_its_permit_is_not_begun_and_its_connection_kept(
    context: ssl.SSLContext, certificate: tuple[str, str]
) -> None:
    heard: list[str] = []
    with SmtpDouble(context=context, heard=heard.append) as double:
        provider = provider_of(double, certificate)
        for _ in range(3):  # on a new connection, and on one that is kept
            with pytest.raises(TooLate):
                provider.send(handover(permit=Permit(0.0, 0.0, Lag())))
            assert not any(command.startswith(("MAIL", "RCPT", "DATA")) for command in heard)
        assert isinstance(provider.send(handover(permit=Permit(0.0, math.inf, Lag()))), Sent)
        assert (double.connections, len(double.taken)) == (1, 1)
        provider.close()
