"""PLAIN and LOGIN, step by step."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.smtp.sasl import MECHANISMS, Challenge, Credentials, Exchange, Failure, LoginMechanism, Outcome, Plain

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
ASK_USERNAME = Challenge("VXNlcm5hbWU6")
ASK_PASSWORD = Challenge("UGFzc3dvcmQ6")


def encoded(text: str) -> bytes:
    return b64encode(text.encode())


def line(text: str) -> bytes:
    """As an initial response, where an empty one is written `=`."""
    return encoded(text) or b"="


@given(TEXT, TEXT, TEXT, st.booleans())
def test_plain(authorization: str, username: str, password: str, at_once: bool) -> None:
    message = f"{authorization}\0{username}\0{password}"
    exchange = Plain()
    if not at_once:
        assert exchange.begin(None) == Challenge("")
        assert exchange.respond(encoded(message)) == Credentials(username, password)
    else:
        assert exchange.begin(line(message)) == Credentials(username, password)


@given(TEXT, TEXT, st.booleans())
def test_login(username: str, password: str, at_once: bool) -> None:
    exchange = LoginMechanism()
    if not at_once:
        assert exchange.begin(None) == ASK_USERNAME
        assert exchange.respond(encoded(username)) == ASK_PASSWORD
    else:
        assert exchange.begin(line(username)) == ASK_PASSWORD
    assert exchange.respond(encoded(password)) == Credentials(username, password)


def steps(mechanism: str, *lines: bytes) -> Outcome:
    """The outcome of the last line; the first is the initial response, empty for none."""
    exchange: Exchange = MECHANISMS[mechanism]()
    outcome = exchange.begin(lines[0] or None)
    for following in lines[1:]:
        assert isinstance(outcome, Challenge)
        outcome = exchange.respond(following)
    return outcome


@pytest.mark.parametrize("lines", [(b"*",), (b"", b"*")])
def test_plain_cancelled(lines: tuple[bytes, ...]) -> None:
    assert steps("PLAIN", *lines) is Failure.CANCELLED


@pytest.mark.parametrize("lines", [(b"*",), (b"", b"*"), (b"YW55", b"*"), (b"", b"YW55", b"*")])
def test_login_cancelled(lines: tuple[bytes, ...]) -> None:
    assert steps("LOGIN", *lines) is Failure.CANCELLED


@pytest.mark.parametrize(
    "response",
    [
        b"=",
        b"AA",
        b"AGFueQBnb29",
        b"AGFueQBnb29k=",
        b"AGFueQBnb29k====",
        b"AGFu eQBnb29k",
        b" AGFueQBnb29k",
        b"AGFueQBnb29k\0",
        b"AGFueQBnb29k\n",
        b"AG=ueQBnb29k",
        b"AGFueQ-_",
        b"\xff\xfe",
        b"****",
        encoded("one"),
        encoded("one\0two"),
        encoded("1\0002\0003\0004"),
    ],
)
def test_plain_malformed(response: bytes) -> None:
    assert steps("PLAIN", response) is Failure.MALFORMED
    assert steps("PLAIN", b"", response) is Failure.MALFORMED


@pytest.mark.parametrize("lines", [(b"any",), (b"", b"any"), (b"YW55", b"pwd"), (b"YW55", b"a b=")])
def test_login_malformed(lines: tuple[bytes, ...]) -> None:
    assert steps("LOGIN", *lines) is Failure.MALFORMED


def test_what_is_not_utf8_is_no_error_but_no_key_either() -> None:
    outcome = steps("LOGIN", b"YW55", b64encode(b"\xff\xfe"))
    assert isinstance(outcome, Credentials)
    assert outcome.password == "\udcff\udcfe"


@given(st.binary(max_size=60), st.sampled_from(["PLAIN", "LOGIN"]))
def test_no_line_raises(response: bytes, mechanism: str) -> None:
    exchange = MECHANISMS[mechanism]()
    exchange.begin(None)
    assert isinstance(exchange.respond(response), Challenge | Credentials | Failure)
