"""Trouble of ours in a batch of commands (RFC 2920) is 4xx for every command of it, and for the batch alone.

A client that has sent MAIL, RCPT and DATA in one go, and hears 5xx to any of them, gives its message up for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.outcomes import LoginFailure, MessageLimit
from relay.smtp import replies
from relay.smtp.options import Options
from relay.smtp.session import Session
from relay.smtp.submission import Submission, Verdict
from relay.smtp.transaction import Transaction
from tests.support.encounter import Encounter, Services
from tests.support.unlimited import Unlimited

OPTIONS = Options("relay.test", max_message_size=2000, max_recipients=3, spool_threshold=1000)
AUTH = b"AUTH PLAIN AGFueQBnb29k\r\n"
#: Message data that would be answered if it were taken for commands.
DATA = b"NOOP\r\nVRFY x\r\nMAIL FROM:<x@y.example>\r\n"
#: What can fail, and how often it is done for one message.
PLACES = {"begin": 1, "admit": 1, "add_recipient": 3, "open_chunk": 3, "open_body": 1, "submit": 1}


class Trouble(Exception):
    """What was not foreseen."""


@dataclass(frozen=True)
class Message:
    """What a client sends in one go, and the place and time at which we fail: at no time where `when` is 0."""

    recipients: int
    #: 0: by DATA.
    chunks: int
    place: str = "submit"
    when: int = 0
    #: An answer that says no for now, not an exception; where there is one.
    said: bool = False


class Faults(Unlimited):
    """Fails where the message that is being sent says so."""

    def __init__(self) -> None:
        self.message = Message(1, 0)
        self.done: Counter[str] = Counter()

    def begin(self, message: Message) -> None:
        self.message = message
        self.done.clear()

    def strikes(self, place: str) -> bool:
        """To be asked each time. Raises Trouble, or says that the answer is to be no."""
        self.done[place] += 1
        if place != self.message.place or self.done[place] != self.message.when:
            return False
        if not self.message.said or place not in {"admit", "submit"}:
            raise Trouble
        return True

    def admit(self, key_id: str) -> MessageLimit | None:
        return MessageLimit.KEY if self.strikes("admit") else None

    @contextmanager
    def built_in(self, services: Services) -> Iterator[None]:
        """Within the parts of the dialogue."""

        def before(place: str, original: Any) -> Any:
            def wrapped(*arguments: Any, **named: Any) -> Any:
                self.strikes(place)
                return original(*arguments, **named)

            return wrapped

        def submit(submission: Submission) -> Verdict:
            return (
                Verdict(replies.TRY_LATER, "busy")
                if self.strikes("submit")
                else type(services).submit(services, submission)
            )

        with (
            patch.object(services, "submit", submit),
            patch.object(Transaction, "begin", before("begin", Transaction.begin)),
            patch.object(Transaction, "add_recipient", before("add_recipient", Transaction.add_recipient)),
            patch.object(Transaction, "open_chunk", before("open_chunk", Transaction.open_chunk)),
            patch.object(Transaction, "open_body", before("open_body", Transaction.open_body)),
        ):
            yield


def answers(encounter: Encounter, count: int) -> list[int]:
    """The codes of the next replies, and no octet more than those."""
    said = b""
    while len(said.splitlines()) < count or not said.endswith(b"\n"):
        octets = encounter.client.recv(65536)
        assert octets, "the connection was closed"
        said += octets
    codes = [int(line[:3]) for line in said.splitlines() if line[3:4] == b" "]
    assert len(codes) == count, said
    return codes


def send(encounter: Encounter, message: Message) -> list[int]:
    """All replies to one message of a client that pipelines."""
    batch = [b"MAIL FROM:<a@b.example>\r\n"]
    batch += [b"RCPT TO:<c%d@d.example>\r\n" % number for number in range(message.recipients)]
    if message.chunks:
        batch += [b"BDAT %d\r\n%s" % (len(DATA), DATA)] * (message.chunks - 1)
        batch += [b"BDAT %d LAST\r\n%s" % (len(DATA), DATA)]
    else:
        batch += [b"DATA\r\n"]
    encounter.send(b"".join(batch))
    said = answers(encounter, len(batch))
    if said[-1] == 354:
        encounter.send(DATA + b".\r\n")
        said += answers(encounter, 1)
    return said


MESSAGES = st.builds(
    Message,
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from(sorted(PLACES)),
    st.integers(0, 3),
    st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=5))
def test_a_passing_trouble_is_passing_for_all_that_was_sent_along(messages: list[Message]) -> None:
    faults = Faults()
    encounter = Encounter(OPTIONS, limits=faults)
    with faults.built_in(encounter.services):
        encounter.send(b"EHLO x\r\n" + AUTH)
        while b"235 " not in encounter.client.recv(65536):
            pass
        stored = 0
        for message in messages:
            faults.begin(message)
            said = send(encounter, message)
            struck = message.when > 0 and faults.done[message.place] >= message.when
            assert max(said) < 500, said
            assert (said[-1] == 250) is not struck, said
            stored += said[-1] == 250
            assert len(encounter.services.messages) == stored
    assert encounter.greenlet.dead is False
    encounter.client.close()
    encounter.greenlet.join()


def test_the_property_reaches_every_place() -> None:
    """Each fault can happen, by DATA or by BDAT, and leaves the next message as it should be."""
    reached = set()
    for place, times in PLACES.items():
        for chunks in (0, 3):
            faults = Faults()
            encounter = Encounter(OPTIONS, limits=faults)
            with faults.built_in(encounter.services):
                encounter.send(b"EHLO x\r\n" + AUTH)
                while b"235 " not in encounter.client.recv(65536):
                    pass
                faults.begin(Message(3, chunks, place, times))
                if max(send(encounter, faults.message)) >= 400:
                    reached.add(place)
                faults.begin(Message(1, chunks))
                assert send(encounter, faults.message)[-1] == 250
            encounter.client.close()
            encounter.greenlet.join()
    assert reached == set(PLACES)


class Away(Services):
    """No password can be looked up."""

    def authenticate(self, password: str) -> LoginFailure:
        return LoginFailure.UNAVAILABLE


@pytest.mark.parametrize("restart", [b"RSET", b"EHLO x", b"HELO x", b"MAIL FROM:<a@b.example> X=1"])
def test_it_ends_with_what_begins_anew(restart: bytes) -> None:
    """From there on, 503 is for a bad sequence of the client's own (RFC 5321 section 4.2.2)."""
    session = Session(OPTIONS, Away(), Unlimited(), "1")
    codes = []
    for line in (b"EHLO x", AUTH.strip(), b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>", b"DATA"):
        reply = session.line(line)
        assert reply is not None
        codes.append(f"{reply.code} {reply.enhanced}")
    assert codes[1:] == ["454 4.7.0", *["451 4.7.0"] * 3]
    session.line(restart)
    reply = session.line(b"DATA")
    assert reply is not None
    assert reply.code == (451 if restart.startswith(b"MAIL") else 503)


def test_a_mail_that_is_refused_for_good_stays_so() -> None:
    session = Session(OPTIONS, Services(), Unlimited(), "1")
    said = [
        session.line(line)
        for line in (b"EHLO x", AUTH.strip(), b"MAIL FROM:<a@b.example> X=1", b"RCPT TO:<c@d.example>", b"DATA")
    ]
    assert [reply.code for reply in said if reply is not None] == [250, 235, 555, 503, 503]
