"""One mail over one connection: who has it where a host refuses some, however its replies come; what it reads of it.

The host is a stand-in (tests/support/smtp_double.py) that keeps a ledger. Without TLS: with it all of this is the same.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from relay.delivery.content import NoRoom, Spool
from relay.delivery.outcome import Failed, Sent, Verdict
from tests.support import smtp_double
from tests.support.smart_host import MAIL, handover, provider_of
from tests.support.smtp_double import SmtpDouble

# Recipients.


def test_those_who_are_refused_are_named_and_the_others_get_it_once() -> None:
    answers = {"a@x.example": ["550 5.1.1 nobody"], "b@x.example": ["450 4.2.2 full"], "d@x.example": ["251 elsewhere"]}
    for offers in (("PIPELINING",), ()):
        replies = {address: list(each) for address, each in answers.items()}
        with SmtpDouble(offers=offers, answers=replies) as double:
            provider = provider_of(double)
            outcome = provider.send(
                handover("a@x.example", "b@x.example", cc=("c@x.example",), bcc=("d@x.example", "c@x.example"))
            )
            assert isinstance(outcome, Sent)
            assert [(each.address, each.passing, each.code) for each in outcome.refused] == [
                ("a@x.example", False, "550 5.1.1"),
                ("b@x.example", True, "450 4.2.2"),
            ]
            assert [taken.recipients for taken in double.taken] == [("c@x.example", "d@x.example")]
            provider.close()


def test_where_there_are_too_many_recipients_the_rest_goes_in_further_transactions() -> None:
    people = [f"p{number}@x.example" for number in range(10)]
    for offers in (("PIPELINING",), ()):
        with SmtpDouble(offers=offers, most_recipients=4) as double:
            outcome = provider_of(double).send(handover(*people))
            assert outcome == Sent("D1", ())
            assert [len(taken.recipients) for taken in double.taken] == [4, 4, 2]
            assert [address for taken in double.taken for address in taken.recipients] == people
            assert double.connections == 1


def test_the_rest_of_too_many_is_tried_again_where_it_fails() -> None:
    with SmtpDouble(most_recipients=1, answers={"b@x.example": ["452 4.5.3 many", "451 4.3.0 x"]}) as double:
        outcome = provider_of(double).send(handover("a@x.example", "b@x.example"))
        assert isinstance(outcome, Sent)
        assert [(each.address, each.passing) for each in outcome.refused] == [("b@x.example", True)]
        assert [taken.recipients for taken in double.taken] == [("a@x.example",)]


def test_a_host_that_asks_for_the_text_although_it_refused_all_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 2920 section 3.1. The double refuses DATA itself, so this one is made to go on."""

    def do_data(session: Any, command: str) -> None:
        session.say("354 Go on")
        texts.append(session.text())
        session.sender = None
        session.say("554 5.5.1 No valid recipients")

    texts: list[bytes] = []
    monkeypatch.setattr(smtp_double._Session, "do_data", do_data)
    with SmtpDouble(answers={"to@x.example": ["550 5.1.1 nobody"]}) as double:
        provider = provider_of(double)
        outcome = provider.send(handover())
        assert isinstance(outcome, Failed)
        assert (outcome.verdict, outcome.code) == (Verdict.PERMANENT, "550 5.1.1")
        assert texts == [b""]
        provider.send(handover())
        assert double.connections == 1


def test_replies_in_as_many_packets_as_octets_are_the_same_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    act = smtp_double._Session.act

    class Piecemeal:
        """A socket that sends each octet by itself: Nagle's algorithm is switched off, so each is a packet."""

        def __init__(self, sock: Any) -> None:
            self._sock = sock

        def sendall(self, octets: bytes) -> None:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for octet in octets:
                self._sock.sendall(bytes((octet,)))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    def piecemeal(session: Any, answer: str) -> None:
        whole, session.sock = session.sock, Piecemeal(session.sock)
        try:
            act(session, answer)
        finally:
            session.sock = whole

    monkeypatch.setattr(smtp_double._Session, "act", piecemeal)
    answers = {"a@x.example": ["550 5.1.1 nobody"], "b@x.example": ["450-4.2.2 full\r\n450 4.2.2 really"]}
    for offers in (("PIPELINING", "SIZE 50000000", "SMTPUTF8"), ()):
        replies = {address: list(each) for address, each in answers.items()}
        with SmtpDouble(offers=offers, answers=replies) as double:
            provider = provider_of(double)
            outcome = provider.send(handover("a@x.example", "b@x.example", "c@x.example"))
            assert isinstance(outcome, Sent)
            assert [(each.address, each.passing) for each in outcome.refused] == [
                ("a@x.example", False),
                ("b@x.example", True),
            ]
            assert [taken.recipients for taken in double.taken] == [("c@x.example",)]
            assert isinstance(provider.send(handover()), Sent)
            assert double.connections == 1
            provider.close()


# Content.


def test_what_the_host_offers_is_used() -> None:
    heard: list[str] = []
    with SmtpDouble(heard=heard.append) as double:
        provider = provider_of(double)
        provider.send(handover())
        assert f"MAIL FROM:<ann@example.com> SIZE={len(MAIL)}" in heard
        heard.clear()
    with SmtpDouble(offers=("SIZE 10",), heard=heard.append) as double:
        provider = provider_of(double)
        large = provider.send(handover())
        assert isinstance(large, Failed)
        assert (large.verdict, large.code) == (Verdict.PERMANENT, "MessageTooLarge")
        assert not any(command.startswith("MAIL") for command in heard)
        assert isinstance(provider.send(handover(content=b"x\r\n")), Sent)


@pytest.fixture
def spool() -> Iterator[Spool]:
    with Spool(tempfile.gettempdir()) as spool:
        yield spool


def test_a_large_mail_comes_from_its_file(spool: Spool) -> None:
    octets = b"".join(b".%d\r\n" % number * 3 for number in range(200_000))
    spool.write(octets)
    with SmtpDouble() as double:
        assert isinstance(provider_of(double).send(handover(content=spool.since(0))), Sent)
        assert double.taken[0].octets == octets


def test_a_file_that_can_not_be_read_is_our_own_trouble(spool: Spool) -> None:
    spool.write(b"x" * 100 + b"\r\n")
    content = spool.since(0)
    spool.cut(50)
    with SmtpDouble() as double:
        provider = provider_of(double)
        with pytest.raises(NoRoom):
            provider.send(handover(content=content))
        assert double.taken == []
        assert isinstance(provider.send(handover()), Sent)
