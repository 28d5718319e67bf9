"""What one match goes through a bounded number of repetitions of: it goes on behind them, with the same result.

The engine of `re` remembers each repetition of a group until the match is done, some sixty octets for one or two of
text, so no group is repeated without a bound where a text has none. Each bound is passed here.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import pytest

from relay.mail import address_spec, html_joining, html_tokens, mailbox, parameters, quoted_string
from relay.mail.address_list import AddressList

COUNTS = [1, 99, 100, 101, 127, 128, 255, 256, 257, 999, 1000, 1001, 2000, 2001, 3456]


@pytest.mark.parametrize("count", COUNTS)
def test_an_address_list_is_read_however_many_pieces_it_has(count: int) -> None:
    name = "m" * count + '="' + '\\"' * count + '"' + "=?utf-8?q?,?=" * count
    reading = AddressList(f'{name} <{"m" * 9}@example.com>, "{"[" * count}" <(") <", ben@example.com')
    reading.read()
    assert reading.found[0] == (
        "m" * count + "=" + '"' * count + "=?utf-8?q?,?=" * count,
        ("m" * 9, "example.com"),
    )


@pytest.mark.parametrize("count", COUNTS[:-1])
def test_a_long_address_is_the_same_by_each_way(count: int) -> None:
    for address in (
        "a" + ".a" * count + "@example.com",
        "a@" + "a." * count + "com",
        '"' + '\\"' * count + '"@example.com',
    ):
        for text in (address, f"<{address}>", f"{address}, ben@example.com"):
            assert mailbox.parse(text) == mailbox.parse(text, shortcuts=False)
            assert mailbox.parse(text).mailboxes[0].domain in ("example.com", "a." * count + "com")
        assert address_spec.exact(address) is not None


@pytest.mark.parametrize("count", COUNTS)
def test_a_field_of_encoded_words_is_one_mailbox_however_many_there_are(count: int) -> None:
    view = " ".join(["=?utf-8?q?Ann?="] * count + ["=?utf-8?q?_=3Cann=40shop.example=3E?="])
    found = mailbox.parse(view)
    assert [(each.local, each.domain) for each in found.mailboxes] == [("ann", "shop.example")]
    assert mailbox.parse(view + "?").mailboxes == []


@pytest.mark.parametrize("count", COUNTS)
def test_a_parameter_is_read_however_many_pairs_it_has(count: int) -> None:
    assert parameters.parse('text/plain; name="' + '\\"' * count + '"; x=y').texts == {"name": '"' * count, "x": "y"}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("value", ["=", "= 'a>b' ", '="" ', "==", '= ">', "='\"", "a=b ", "='>'=\n\">\"c"])
def test_a_tag_ends_where_it_does_however_many_attributes_it_has(count: int, value: str) -> None:
    html = f"<a {value * count}>x<b>"
    attributes = re.match(r"(?:[^=>]|=\s*+(?:\"[^\"]*+\"|'[^']*+')?)*", html[2:])
    assert attributes is not None
    token = next(iter(html_tokens.Markup(html)))
    assert token == ("a", 0, 2 + attributes.end() + 1, attributes[0])


def test_a_tag_that_never_ends_is_text_however_many_attributes_it_has() -> None:
    for count in COUNTS:
        markup = html_tokens.Markup("x<a " + "b=c " * count)
        assert (list(markup), markup.text_from) == ([], 1)


@pytest.mark.parametrize("comment", ["<!--", "<!-- a", "<!-- <b>", "<!--!>", "<!-- ->", "<!-- a --", "<!-- a --!"])
def test_a_comment_that_nothing_closes_swallows_nothing_behind_it(comment: str) -> None:
    markup = html_tokens.Markup(f"x{comment}")
    assert [(token.name, token.start, token.end) for token in markup] == [("", 1, 1 + len(comment))]
    assert markup.closer == "-->"
    joined = html_joining.join([f"<body>x{comment}", "<p>second</p>"])
    names = [token.name for token in html_tokens.Markup(joined)]
    assert names[-2:] == ["p", "/p"]


def _read(text: str) -> None:
    AddressList(text).read()


def _tokens(text: str) -> None:
    for _ in html_tokens.Markup(text):
        pass


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (mailbox.parse, "a." * 20_000 + "@example.com"),
        (mailbox.parse, "a@" + "a." * 20_000 + "com"),
        (mailbox.parse, "=?a?b?YQ==?=" * 20_000 + "!"),
        (_read, "m" * 40_000),
        (_read, "[=" * 20_000),
        (_read, '"a"' * 12_000),
        (quoted_string.is_whole, '"' + '\\"' * 20_000 + '"'),
        (_read, '<"' + '\\"' * 20_000 + '">'),
        (_read, "(" + '\\"' * 20_000 + ")"),
        (_tokens, "<a " + "=" * 40_000 + ">"),
        (_tokens, "<a " + "='>'" * 10_000),
        (_tokens, "<!--" + "-" * 40_000),
        (_tokens, "<!--" + "- " * 20_000 + "-->"),
    ],
)
def test_no_match_remembers_all_of_a_text(read: Callable[[str], object], text: str) -> None:
    read(text[:1000] + text[-1000:])
    tracemalloc.start()
    try:
        read(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A few copies of it, in characters of one octet or two; a repetition that is remembered takes thirty octets or more
    # for one of text.
    assert peak < 12 * len(text) + 100_000, peak / len(text)
