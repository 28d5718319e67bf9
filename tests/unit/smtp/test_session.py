"""The state machine by itself: what it expects next, and what it tells the loop. Its replies are in tests/dialogues."""

from __future__ import annotations

from dataclasses import replace

import pytest

from config.settings import RecipientRule
from relay.smtp import replies
from relay.smtp.framing import DataEnd, Flaw
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.session import Expects, Session
from relay.smtp.submission import Verdict
from tests.support.encounter import OPTIONS, Services
from tests.support.unlimited import Unlimited

GOOD = b"AUTH PLAIN AGFueQBnb29k"
BAD = b"AUTH PLAIN AGFueQBiYWQ="


@pytest.fixture
def services() -> Services:
    return Services()


def session(services: Services, *lines: bytes, options: Options = OPTIONS) -> Session:
    """A session that has taken these lines."""
    made = Session(options, services, Unlimited(), "test")
    for line in lines:
        made.line(line)
    return made


def authenticated(services: Services, *lines: bytes, options: Options = OPTIONS) -> Session:
    return session(services, b"EHLO client.example", GOOD, *lines, options=options)


ENVELOPE = (b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>")


def test_expects(services: Services) -> None:
    made = session(services)
    assert made.expects is Expects.COMMAND
    steps = [
        (b"EHLO client.example", Expects.COMMAND),
        (b"AUTH LOGIN", Expects.AUTH_RESPONSE),
        (b"YW55", Expects.AUTH_RESPONSE),
        (b"Z29vZA==", Expects.COMMAND),
        (ENVELOPE[0], Expects.COMMAND),
        (ENVELOPE[1], Expects.COMMAND),
        (b"BDAT 10", Expects.CHUNK),
    ]
    for line, expected in steps:
        made.line(line)
        assert made.expects is expected, line
    assert made.chunk_size == 10
    assert made.sink is not None
    assert made.end_of_chunk() is replies.CHUNK_OK
    assert made.expects is Expects.COMMAND
    made.line(b"RSET")
    for line in (*ENVELOPE, b"DATA"):
        made.line(line)
    assert made.expects is Expects.DATA
    assert made.sink is not None
    made.sink.write(b"body\r\n")
    assert made.end_of_data(DataEnd.COMPLETE) == replies.queued("1")
    assert made.expects is Expects.COMMAND
    assert made.sink is None
    assert services.messages == [(("c@d.example",), RecipientRule.MERGE, b"body\r\n")]


def test_starttls_forgets_everything_but_mistakes(services: Services) -> None:
    """Not reachable over the wire, where AUTH waits for TLS: the promise holds by itself."""
    made = authenticated(services, *ENVELOPE)
    made.expects = Expects.TLS
    made.tls_started()
    assert made.expects is Expects.COMMAND
    assert made.line(ENVELOPE[0]) is replies.HELLO_FIRST
    assert made.line(b"RCPT TO:<c@d.example>") is replies.MAIL_FIRST
    made.line(b"EHLO client.example")
    assert made.line(ENVELOPE[0]) is replies.AUTH_REQUIRED


def test_the_rule_of_a_connection_ends_with_its_login(services: Services) -> None:
    made = session(services, b"EHLO x", b"AUTH PLAIN AGVudmVsb3BlAGdvb2Q=", *ENVELOPE, b"BDAT 0 LAST")
    made.end_of_chunk()
    made.tls_started()
    for line in (b"EHLO x", GOOD, *ENVELOPE, b"BDAT 0 LAST"):
        made.line(line)
    made.end_of_chunk()
    assert [rule for _, rule, _ in services.messages] == [RecipientRule.ENVELOPE, RecipientRule.MERGE]


def test_the_operators_rule(services: Services) -> None:
    options = replace(OPTIONS, recipient_rule=RecipientRule.HEADERS)
    authenticated(services, *ENVELOPE, b"BDAT 0 LAST", options=options).end_of_chunk()
    assert [rule for _, rule, _ in services.messages] == [RecipientRule.HEADERS]


def test_starttls_hides_auth(services: Services) -> None:
    made = session(services, options=replace(OPTIONS, tls_available=True))
    assert "STARTTLS" in _offered(made.line(b"EHLO client.example"))
    assert made.line(b"STARTTLS") is replies.READY_FOR_TLS
    assert made.expects is Expects.TLS
    made.tls_started()
    offered = _offered(made.line(b"EHLO client.example"))
    assert "STARTTLS" not in offered
    assert "AUTH PLAIN LOGIN" in offered


def _offered(reply: Reply | None) -> tuple[str, ...]:
    assert reply is not None
    return reply.lines[1:]


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        (replace(OPTIONS, max_messages=0), "LIMITS RCPTMAX=3"),
        (replace(OPTIONS, max_messages=7), "LIMITS MAILMAX=7 RCPTMAX=3"),
        (replace(OPTIONS, max_messages=1_000_000), "LIMITS RCPTMAX=3"),
    ],
)
def test_limits(services: Services, options: Options, limits: str) -> None:
    assert limits in _offered(session(services, options=options).line(b"EHLO client.example"))


@pytest.mark.parametrize(
    ("line", "reply"),
    [(GOOD, replies.AUTHENTICATED), (BAD, replies.BAD_KEY), (b"AUTH PLAIN *", None), (b"AUTH PLAIN x", None)],
)
def test_what_an_auth_came_to(services: Services, line: bytes, reply: Reply | None) -> None:
    assert session(services, b"EHLO x", line).auth_reply is reply


@pytest.mark.parametrize(
    ("flaw", "reply"),
    [
        (Flaw.TOO_LONG, replies.LINE_TOO_LONG),
        (Flaw.BARE_LINE_FEED, replies.BARE_LINE_FEED),
        (Flaw.ENDLESS, replies.ENDLESS_LINE),
    ],
)
def test_flawed_lines(services: Services, flaw: Flaw, reply: Reply) -> None:
    assert session(services).flawed_line(flaw) is reply
    in_exchange = session(services, b"EHLO x", b"AUTH LOGIN")
    assert in_exchange.flawed_line(flaw) is (replies.AUTH_LINE_TOO_LONG if flaw is Flaw.TOO_LONG else reply)
    assert in_exchange.expects is Expects.COMMAND
    assert in_exchange.line(b"NOOP") is replies.OK


def test_trouble_leaves_nothing(services: Services) -> None:
    made = authenticated(services, *ENVELOPE, b"BDAT 10")
    sink = made.sink
    assert sink is not None
    sink.write(b"0123456789")
    made.end_of_chunk()
    assert made.fail(replies.TRY_LATER) is replies.TRY_LATER
    assert made.verdict == Verdict(replies.TRY_LATER, "failed", size=10, recipients=1)
    assert sink.read() == b""
    assert made.line(b"DATA") is replies.TRY_LATER
    made.line(b"RSET")
    assert made.line(b"DATA") is replies.MAIL_FIRST


def test_trouble_between_messages_is_no_message(services: Services) -> None:
    made = session(services, b"EHLO client.example", b"AUTH LOGIN")
    made.fail(replies.TRY_LATER)
    assert made.verdict is None
    assert made.expects is Expects.COMMAND
    assert made.line(b"NOOP") is replies.OK


@pytest.mark.parametrize(
    ("end", "reply", "outcome"),
    [
        (DataEnd.TOO_LARGE, replies.TOO_LARGE, "too_large"),
        (DataEnd.FALSE_END, replies.FALSE_END_OF_DATA, "bare_lf"),
    ],
)
def test_refused_data(services: Services, end: DataEnd, reply: Reply, outcome: str) -> None:
    made = authenticated(services, *ENVELOPE, b"DATA")
    assert made.end_of_data(end) is reply
    assert made.verdict == Verdict(reply, outcome, size=0, recipients=1)
    assert services.messages == []


def test_data_without_an_end_ends_the_connection(services: Services) -> None:
    made = authenticated(services, *ENVELOPE, b"DATA")
    reply = made.end_of_data(DataEnd.ENDLESS)
    assert (reply.code, reply.closes) == (replies.TOO_LARGE.code, True)


def test_a_refused_message_of_many_chunks_is_one_refused_message(services: Services) -> None:
    made = authenticated(services, *ENVELOPE)
    verdicts = []
    for line in (b"BDAT 9999", b"BDAT 1", b"BDAT 1 LAST"):
        made.line(line)
        assert made.sink is None
        assert made.end_of_chunk() is replies.TOO_LARGE
        verdicts.append(made.verdict)
    assert verdicts == [None, None, Verdict(replies.TOO_LARGE, "too_large", size=0, recipients=1)]


def test_close_lets_go(services: Services) -> None:
    made = authenticated(services, *ENVELOPE, b"BDAT 3")
    sink = made.sink
    assert sink is not None
    sink.write(b"abc")
    made.close()
    assert sink.read() == b""
    made.close()
