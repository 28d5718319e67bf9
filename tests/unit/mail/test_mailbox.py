"""Address lists: what the domain restriction rests on."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.mail import Unusable, mailbox, parse


def _from(*values: str) -> tuple[str, ...]:
    head = "".join(f"From: {value}\r\n" for value in values)
    try:
        return parse(head.encode() + b"\r\n").from_addresses
    except Unusable:
        return ()


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ('"a@allowed.example" <b@evil.example>', {"b@evil.example"}),
        ("(a@allowed.example) b@evil.example", {"b@evil.example"}),
        ("b@evil.example (a@allowed.example)", {"b@evil.example"}),
        ("<@allowed.example:b@evil.example>", {"b@evil.example"}),
        ("=?utf-8?q?a=40allowed.example?= <b@evil.example>", {"b@evil.example"}),
        ("=?utf-8?q?a=40allowed.example?=", set()),
        ("=?utf-8?b?YUBhbGxvd2VkLmV4YW1wbGU=?=", set()),
        ("=?utf-8?q?A_=3Ca=40allowed.example=3E?= <b@evil.example>", {"b@evil.example"}),
        ("Team: a@allowed.example, b@evil.example;", {"a@allowed.example", "b@evil.example"}),
        ("a@allowed.example, b@evil.example", {"a@allowed.example", "b@evil.example"}),
        ('"a@allowed.example"@evil.example', {'"a@allowed.example"@evil.example'}),
        ("a@allowed.example.evil.example", {"a@allowed.example.evil.example"}),
        ("a@ALLOWED.example", {"a@allowed.example"}),
    ],
)
def test_every_address_of_from_and_no_other(value: str, addresses: set[str]) -> None:
    assert set(_from(value)) == addresses


@pytest.mark.parametrize(
    "value",
    [
        "a@allowed.example <b@evil.example>",
        "<a@allowed.example> <b@evil.example>",
        "a@allowed.example b@evil.example",
        '"a@allowed.example <b@evil.example>',
        "a@allowed.example <b@evil.example",
        "a@allowed.example (b@evil.example",
        "=?utf-8?q?x_<b@evil.example>?= <a@allowed.example>",
        "a@allowed.example>, <b@evil.example>",
        "a@allowed.example\\, b@evil.example",
        "b@evil.example: a@allowed.example;",
        "[b@evil.example] <a@allowed.example>",
    ],
)
def test_a_from_that_readers_may_read_differently_holds_every_candidate(value: str) -> None:
    assert {"a@allowed.example", "b@evil.example"} <= set(_from(value))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("joe . doe @ b . example", ["joe.doe@b.example"]),
        ("joe .doe@b .example, c@d.example", ["joe.doe@b.example", "c@d.example"]),
        ("a @ b . (c) example . org", ["a@b.example.org"]),
        ("J . R . Doe <a@b.example>", ["a@b.example"]),
        # No blank before the full stop: the end of a sentence.
        ("ask me. joe@b.example. Thanks", ["joe@b.example"]),
        (". . joe@b.example", ["joe@b.example"]),
        ('"x y" . z @ b.example', []),
    ],
)
def test_blanks_around_the_full_stops_of_an_address(value: str, found: list[str]) -> None:
    assert [f"{each.local}@{each.domain}" for each in mailbox.parse(value).mailboxes] == found


@pytest.mark.parametrize(
    "value",
    ['"<a@b.example"', '"x<a@b.example>"', "<<a@b.example>>", "<[a@b.example>", '"(a@b.example"'],
)
def test_brackets_are_no_part_of_an_address(value: str) -> None:
    assert [f"{each.local}@{each.domain}" for each in mailbox.parse(value).mailboxes] == ["a@b.example"]


def test_every_from_field_counts_and_the_first_is_shown() -> None:
    assert _from("a@allowed.example", "B <b@evil.example>") == ("a@allowed.example", "b@evil.example")
    assert parse(b"From: A <a@b.example>\r\nFrom: c@d.example\r\n\r\n").sender == "A <a@b.example>"


_ATOM = st.from_regex(r"[a-z0-9][a-z0-9!#$%&*+=?^_`{|}~-]{0,8}", fullmatch=True).filter(lambda text: "=?" not in text)
_DOMAIN = st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True)
_PHRASE = st.lists(_ATOM, min_size=1, max_size=3).map(" ".join)
_ELEMENT = st.one_of(
    st.builds("{}@{}".format, _ATOM, _DOMAIN),
    st.builds("{} <{}@{}>".format, _PHRASE, _ATOM, _DOMAIN),
    st.builds('"{}, {}" <{}@{}>'.format, _PHRASE, _PHRASE, _ATOM, _DOMAIN),
    st.builds('"{}\\"{}" {} <{}@{}>'.format, _ATOM, _ATOM, _ATOM, _ATOM, _DOMAIN),
    st.builds('"{} {}"@{}'.format, _ATOM, _ATOM, _DOMAIN),
)


@given(st.lists(_ELEMENT, min_size=1, max_size=5), st.sampled_from([", ", ",", " ,  "]))
def test_strict_expression_grammar_and_tolerant_reading_agree(elements: list[str], separator: str) -> None:
    view = separator.join(elements)
    short = mailbox.parse(view)
    grammar = mailbox.parse(view, shortcuts=False)
    # A comment sends the whole list to the tolerant reading.
    tolerant = mailbox.parse(view + " (comment)", shortcuts=False)
    assert len(short.mailboxes) == len(elements)
    assert [each[1:] for each in short.mailboxes] == [each[1:] for each in grammar.mailboxes]
    assert [each[1:] for each in short.mailboxes] == [each[1:] for each in tolerant.mailboxes]
    assert [each.name for each in short.mailboxes] == [each.name for each in grammar.mailboxes]


@given(st.text(max_size=200))
def test_nothing_that_can_be_written_raises(text: str) -> None:
    view = text.encode("utf-8", "replace").decode("latin-1")
    for shortcuts in (True, False):
        mailbox.parse(view, shortcuts=shortcuts)
    mailbox.lookalikes(view)
    assert mailbox.with_name(view, "a@b.example").isascii()


@pytest.mark.parametrize(
    "view", ["a" * 20_000 + "[@b.example", "<" + "a" * 20_000 + "(@b.example>", "\xe4" * 20_000 + "]@b"]
)
def test_time_for_an_address_grows_with_its_length_alone(view: str) -> None:
    began = time.process_time()
    mailbox.parse(view, shortcuts=False)
    # Quadratic time would be a quarter of a second and more.
    assert time.process_time() - began < 0.1
