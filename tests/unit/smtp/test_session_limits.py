"""Limits on what one connection may do, in the dialogue alone."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import pytest

from relay.core.outcomes import LoginFailure, MessageLimit
from relay.core.records import ApiKey
from relay.smtp import replies
from relay.smtp.options import Options
from relay.smtp.session import Session
from relay.smtp.submission import Limits, Login, Submission, Verdict
from tests.support.unlimited import Unlimited

LOGIN = Login("0" * 64, ApiKey("key", "user", "full_access", None))
AUTH = b"AUTH PLAIN " + base64.b64encode(b"\0user\0good")


class KeyServices:
    """Lets every client in and stores everything."""

    def authenticate(self, password: str) -> Login | LoginFailure:
        return LOGIN

    def submit(self, submission: Submission) -> Verdict:
        return Verdict(replies.queued("id"), "queued", "id")


class Limited(Unlimited):
    """Admits messages as it is told, one after the other."""

    def __init__(self, answers: Iterable[MessageLimit | None]) -> None:
        self._answers = iter(answers)
        self.asked: list[str] = []

    def admit(self, key_id: str) -> MessageLimit | None:
        self.asked.append(key_id)
        return next(self._answers)


def session(limits: Limits | None = None, **options: int) -> Session:
    decided = Options("relay.test", 1_000_000, 100, **options)  # type: ignore[arg-type]
    return Session(decided, KeyServices(), limits or Unlimited(), "1")


def say(client: Session, *lines: bytes) -> list[str]:
    answers = [client.line(line) for line in lines]
    return [f"{answer.code} {answer.enhanced}" + ("!" if answer.closes else "") for answer in answers if answer]


def test_commands_before_auth_are_counted() -> None:
    client = session(max_before_auth=3)
    assert say(client, b"EHLO x", b"NOOP", b"RSET", b"NOOP") == ["250 ", "250 2.0.0", "250 2.0.0", "421 4.7.0!"]


def test_the_lines_of_an_exchange_count_as_well() -> None:
    client = session(max_before_auth=2)
    assert say(client, b"EHLO x", b"AUTH LOGIN", b"dXNlcg==") == ["250 ", "334 ", "421 4.7.0!"]


def test_commands_after_auth_are_not_limited() -> None:
    client = session(max_before_auth=2)
    assert say(client, b"EHLO x", AUTH, *[b"NOOP"] * 50) == ["250 ", "235 2.7.0", *["250 2.0.0"] * 50]


def test_messages_of_a_connection() -> None:
    client = session(max_messages=2)
    message = (b"MAIL FROM:<a@b.example>", b"RSET")
    assert say(client, b"EHLO x", AUTH, *message * 2) == ["250 ", "235 2.7.0", *["250 2.1.0", "250 2.0.0"] * 2]
    assert say(client, message[0]) == ["421 4.7.0!"]


@pytest.mark.parametrize("limit", MessageLimit)
def test_messages_that_may_not_be_sent_now(limit: MessageLimit) -> None:
    limits = Limited([None, limit, limit, None])
    client = session(limits, max_messages=2)
    mail, recipient = b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>"
    assert say(client, b"EHLO x", AUTH) == ["250 ", "235 2.7.0"]
    assert say(client, mail, b"MAIL FROM:<a@b.example> NONSENSE", b"RSET") == ["250 2.1.0", "503 5.5.1", "250 2.0.0"]
    # A batch that is refused at its beginning is refused whole, and costs nothing of what the connection may send.
    assert say(client, mail, recipient, b"DATA") == ["450 4.7.1", "450 4.7.1", "450 4.7.1"]
    assert say(client, mail, mail) == ["450 4.7.1", "250 2.1.0"]
    assert limits.asked == ["key"] * 4


def test_nonsense_is_not_asked_about() -> None:
    limits = Limited([])
    client = session(limits)
    assert say(client, b"EHLO x", b"MAIL FROM:<a@b.example>", AUTH) == ["250 ", "530 5.7.0", "235 2.7.0"]
    assert say(client, b"MAIL a@b.example", b"MAIL FROM:<a@b.example> X=1") == ["501 5.5.4", "555 5.5.4"]
    assert limits.asked == []
