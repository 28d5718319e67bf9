"""Every reply, as it goes over the wire."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.smtp import replies
from relay.smtp.replies import Reply

CONSTANTS = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}
#: What a stranger may have a hand in: domains, addresses, tags.
HOSTILE = st.text(max_size=1200) | st.sampled_from(
    ["a\r\n250 2.0.0 Ok", "\n", "\0", "\x85", "\u2028", "ü" * 600, "\udcff", "x" * 509, "x" * 5000]
)
LINE = re.compile(rb"(?P<code>[2-5][0-9][0-9])(?P<more>[ -])(?P<text>[ -~]*)\r\n")
ENHANCED = re.compile(rb"([245])\.[0-9]{1,3}\.[0-9]{1,3} \S")


def check(reply: Reply) -> None:
    """RFC 5321 sections 4.2, 4.5.3.1.5 and RFC 2034 section 4."""
    octets = reply.encode()
    assert octets.endswith(b"\r\n")
    lines = octets.splitlines(keepends=True)
    assert len(lines) == len(reply.lines)
    for number, line in enumerate(lines, 1):
        match = LINE.fullmatch(line)
        assert match is not None, line
        assert len(line) <= 512
        assert int(match["code"]) == reply.code
        assert (match["more"] == b" ") is (number == len(lines))
        if reply.enhanced:
            enhanced = ENHANCED.match(match["text"])
            assert enhanced is not None, line
            assert enhanced[1] == match["code"][:1]
    assert reply.positive is (reply.code < 400)
    assert reply.temporary is (400 <= reply.code < 500)


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant(name: str) -> None:
    reply = CONSTANTS[name]
    check(reply)
    assert len(reply.encode()) < 200, "somebody has to read it"
    if reply.code == 421:
        assert reply.closes, "RFC 5321 section 3.8: 421 announces the end"
    # RFC 2034 section 4: on everything but greeting, EHLO and intermediate replies.
    assert bool(reply.enhanced) is (reply.code // 100 != 3)


def test_no_two_names_for_one_reply() -> None:
    assert len({(reply.encode(), reply.closes) for reply in CONSTANTS.values()}) == len(CONSTANTS)


@given(HOSTILE)
def test_one_parameter(text: str) -> None:
    for make in (
        replies.greeting,
        replies.helo,
        replies.queued,
        replies.already_queued,
        replies.challenge,
        replies.wrong_domain,
        replies.bad_tag,
        replies.bad_idempotency_key,
    ):
        check(make(text))


@given(HOSTILE, st.lists(HOSTILE, max_size=5))
def test_ehlo(hostname: str, extensions: list[str]) -> None:
    check(replies.ehlo((hostname, *extensions)))


@given(st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=6))
def test_suppressed(reasons: list[tuple[str, str]]) -> None:
    check(replies.suppressed(reasons))


def test_suppressed_names_three_and_counts_the_rest() -> None:
    reasons = [(f"{number}@example.com", "bounced") for number in range(5)]
    text = replies.suppressed(reasons).encode().decode()
    assert "0@example.com (bounced), 1@example.com (bounced), 2@example.com (bounced) and 2 more" in text


def test_a_challenge_is_never_cut_or_altered() -> None:
    assert replies.challenge().encode() == b"334 \r\n"
    assert replies.challenge("VXNlcm5hbWU6").encode() == b"334 VXNlcm5hbWU6\r\n"


def test_closing() -> None:
    assert replies.BAD_KEY.closing() == Reply(535, "5.7.8", replies.BAD_KEY.lines, closes=True)
    assert not replies.BAD_KEY.closes
