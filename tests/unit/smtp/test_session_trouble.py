"""Our trouble at AUTH does not count as a refusal, and nothing that is refused or thrown away goes on without end."""

from __future__ import annotations

import base64

import pytest

from relay.core.outcomes import LoginFailure
from relay.core.records import ApiKey
from relay.smtp import replies
from relay.smtp.framing import DataEnd, Framing
from relay.smtp.options import Options
from relay.smtp.session import MAX_DISCARDED_BEFORE_AUTH, Expects, Session
from relay.smtp.submission import Login, Submission, Verdict
from tests.support.unlimited import Unlimited

LOGIN = Login("0" * 64, ApiKey("key", "user", "full_access", None))
MAIL, RCPT = b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>"


class KeyServices:
    """Lets `good` in; `away` can't be told now, `bug` raises."""

    def authenticate(self, password: str) -> Login | LoginFailure:
        if password == "bug":
            raise RuntimeError
        if password == "away":
            return LoginFailure.UNAVAILABLE
        return LOGIN if password == "good" else LoginFailure.WRONG_KEY

    def submit(self, submission: Submission) -> Verdict:
        return Verdict(replies.queued("id"), "queued", "id")


def session(**options: int) -> Session:
    made = Session(Options("relay.test", 1_000_000, 100, **options), KeyServices(), Unlimited(), "1")  # type: ignore[arg-type]
    made.line(b"EHLO x")
    return made


def auth(password: str) -> bytes:
    return b"AUTH PLAIN " + base64.b64encode(b"\0user\0" + password.encode())


def say(client: Session, line: bytes) -> str:
    """As the connection's loop does it."""
    try:
        reply = client.line(line)
    except RuntimeError:
        reply = client.fail(replies.TRY_LATER)
    assert reply is not None
    return f"{reply.code} {reply.enhanced}" + ("!" if reply.closes else "")


@pytest.mark.parametrize(("password", "code"), [("away", "454 4.7.0"), ("bug", "451 4.3.0")])
@pytest.mark.parametrize("between", [[], [b"RSET"], [b"EHLO y"], [b"HELO y"], [b"NOOP"], [b"AUTH PLAIN", b"*"]])
def test_mail_after_our_trouble_at_auth_may_come_again(password: str, code: str, between: list[bytes]) -> None:
    client = session()
    assert say(client, auth(password)) == code
    for line in between:
        say(client, line)
    for _ in range(30):
        assert say(client, MAIL) == "451 4.7.0"


@pytest.mark.parametrize("later", ["bad", "good"])
def test_what_is_known_later_counts(later: str) -> None:
    client = session()
    say(client, auth("away"))
    say(client, auth(later))
    assert say(client, MAIL) == {"bad": "530 5.7.0", "good": "250 2.1.0"}[later]


def test_a_handshake_forgets_it() -> None:
    client = session()
    say(client, auth("away"))
    client.tls_started()
    client.line(b"EHLO x")
    assert say(client, MAIL) == "530 5.7.0"


def test_without_auth_mail_is_refused_with_530() -> None:
    assert say(session(), MAIL) == "530 5.7.0"


# What is refused


def test_recipients_that_are_refused_have_an_end() -> None:
    client = session()
    say(client, auth("good"))
    said = []
    for _ in range(20):
        say(client, MAIL)
        said += [say(client, b"RCPT TO:<nobody>") for _ in range(10)]
        say(client, b"RSET")
    assert said[:100] == ["501 5.5.4"] * 100 or set(said[:100]) <= {"501 5.5.4", "553 5.1.3"}
    assert set(said[100:]) == {"421 4.7.0!"}


def test_a_list_with_good_ones_may_have_any_number_of_bad_ones() -> None:
    client = session()
    say(client, auth("good"))
    for _ in range(30):
        say(client, MAIL)
        assert "421 4.7.0!" not in [say(client, b"RCPT TO:<nobody>") for _ in range(50)]
        assert say(client, RCPT) == "250 2.1.5"
        say(client, b"DATA")
        assert client.end_of_data(DataEnd.COMPLETE).code == 250


def test_one_recipient_too_many_is_no_error() -> None:
    """Clients send the rest in another transaction (RFC 5321 section 4.5.3.1.10)."""
    client = session()
    say(client, auth("good"))
    say(client, MAIL)
    said = [say(client, b"RCPT TO:<a%d@d.example>" % number) for number in range(1000)]
    assert said[100:] == ["452 4.5.3"] * 900


# What is thrown away


@pytest.mark.parametrize("sizes", [[10**20 - 1], [MAX_DISCARDED_BEFORE_AUTH + 1], [500_000] * 3, [1] * 15 + [10**6]])
def test_before_a_login_chunks_are_not_thrown_away_without_end(sizes: list[int]) -> None:
    client = session()
    for size in sizes[:-1]:
        assert client.line(b"BDAT %d" % size) is None
        assert client.expects is Expects.CHUNK
        assert client.end_of_chunk() is replies.MAIL_FIRST
    assert say(client, b"BDAT %d LAST" % sizes[-1]) == "503 5.5.1!"
    assert client.expects is Expects.COMMAND


def test_chunks_of_a_refused_message_are_not_thrown_away_without_end() -> None:
    client = session()
    say(client, auth("good"))
    for _ in range(3):
        say(client, MAIL)
        say(client, RCPT)
        assert client.line(b"BDAT 75000000") is None
        assert client.end_of_chunk() is replies.TOO_LARGE
        say(client, b"RSET")
    say(client, MAIL)
    say(client, RCPT)
    assert client.line(b"BDAT 75000000") is None
    assert client.end_of_chunk() is replies.TOO_LARGE
    assert say(client, b"BDAT 75000000") == "552 5.3.4!"


def test_data_beyond_all_limits_is_not_read_to_its_end() -> None:
    read = 0

    def receive() -> bytes:
        nonlocal read
        read += 50_000
        return b"x" * 50_000

    assert Framing(receive).data(None, 500_000) is DataEnd.ENDLESS
    assert read < 100_200_000
    client = session()
    say(client, auth("good"))
    for line in (MAIL, RCPT, b"DATA"):
        say(client, line)
    reply = client.end_of_data(DataEnd.ENDLESS)
    assert (reply.code, reply.enhanced, reply.closes) == (552, "5.3.4", True)


# Delivery status notifications


GOOD = [
    "RET=FULL", "ret=hdrs", "ENVID=QQ314159", "ENVID=" + "x" * 100, "ENVID=a+2Bb+3D", "ENVID=<1@b.example>",
]  # fmt: skip
BAD = ["RET", "RET=", "RET=ALL", "ENVID", "ENVID=", "ENVID=" + "x" * 101, "ENVID=a+2", "ENVID=a=b", "ENVID=a+zz"]
GOOD_FOR_RECIPIENTS = [
    "NOTIFY=NEVER", "NOTIFY=SUCCESS,FAILURE", "notify=delay,success,failure", "NOTIFY=FAILURE",
    "ORCPT=rfc822;c@d.example", "ORCPT=rfc822;c+2Bx@d.example", "ORCPT=x-local;" + "y" * 492,
    "NOTIFY=SUCCESS ORCPT=rfc822;c@d.example",
]  # fmt: skip
BAD_FOR_RECIPIENTS = [
    "NOTIFY", "NOTIFY=", "NOTIFY=NEVER,SUCCESS", "NOTIFY=SUCCESS,", "NOTIFY=ALWAYS", "NOTIFY=SUCCESS,NEVER",
    "ORCPT=", "ORCPT=c@d.example", "ORCPT=rfc822;", "ORCPT=;c@d.example", "ORCPT=rfc822;c+2@d.example",
    "ORCPT=x-local;" + "y" * 493, "ORCPT=rfc822;c=d@e.example", "ORCPT=rfc822;c@d.example ORCPT=rfc822;c@d.example",
]  # fmt: skip


def in_transaction(parameter: str = "", mail: str = "") -> str:
    client = session()
    say(client, auth("good"))
    if mail:
        return say(client, MAIL + b" " + mail.encode())
    say(client, MAIL)
    return say(client, RCPT + b" " + parameter.encode())


@pytest.mark.parametrize("parameter", GOOD)
def test_mail_takes_what_dsn_says(parameter: str) -> None:
    assert in_transaction(mail=parameter) == "250 2.1.0"


@pytest.mark.parametrize("parameter", BAD)
def test_mail_looks_at_its_form(parameter: str) -> None:
    assert in_transaction(mail=parameter) == "501 5.5.4"


@pytest.mark.parametrize("parameter", GOOD_FOR_RECIPIENTS)
def test_rcpt_takes_what_dsn_says(parameter: str) -> None:
    assert in_transaction(parameter) == "250 2.1.5"


@pytest.mark.parametrize("parameter", BAD_FOR_RECIPIENTS)
def test_rcpt_looks_at_its_form(parameter: str) -> None:
    assert in_transaction(parameter) == "501 5.5.4"


def test_each_has_its_command_and_needs_an_extended_hello() -> None:
    assert in_transaction(mail="NOTIFY=NEVER") == "555 5.5.4"
    assert in_transaction("RET=FULL") == "555 5.5.4"
    client = session()
    client.line(b"HELO x")
    say(client, auth("good"))
    say(client, MAIL)
    assert say(client, RCPT + b" NOTIFY=NEVER") == "555 5.5.4"


def test_an_original_recipient_may_be_utf8_where_smtputf8_was_said() -> None:
    line = RCPT + " ORCPT=utf-8;é=x@d.example".encode()
    client = session()
    say(client, auth("good"))
    say(client, MAIL)
    assert say(client, line) == "501 5.5.4"
    say(client, b"RSET")
    say(client, MAIL + b" SMTPUTF8")
    assert say(client, line) == "250 2.1.5"
