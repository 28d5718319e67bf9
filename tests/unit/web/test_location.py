"""Where a click leads to can stand in a header, and is the URL that a browser would have gone to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.web.location import location_of


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("https://x.example/a?b=c&d=%20#e", "https://x.example/a?b=c&d=%20#e"),
        ("HTTP://X.example", "HTTP://X.example"),
        (" https://x.example/a b\t\r\nc ", "https://x.example/a%20bc"),
        ("https://x.example/\r\nSet-Cookie: a=b", "https://x.example/Set-Cookie:%20a=b"),
        ("https://x.example/ä?ö=ü#ß", "https://x.example/%C3%A4?%C3%B6=%C3%BC#%C3%9F"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
        ("https://bücher.example:8443?x", "https://xn--bcher-kva.example:8443?x"),
        ("https://ann:secret@bücher.example/", "https://ann:secret@xn--bcher-kva.example/"),
        ("https://ü ü/", "https://%C3%BC%20%C3%BC/"),
        ('https://x.example/"<>\\^`{|}', "https://x.example/%22%3C%3E\\^`{|}"),
        ("https://x.example/\0\x7f", "https://x.example/%00%7F"),
        ("https://x.example/\ud800", "https://x.example/?"),
        ("http://[2001:db8::1]/", "http://[2001:db8::1]/"),
    ],
)
def test_urls_of_http(target: str, location: str) -> None:
    assert location_of(target) == location


@pytest.mark.parametrize(
    "target",
    ["", "x", "/x", "//x.example", "javascript:alert(1)", "data:text/html,x", "https:x", "https:/x", "ftp://x", "\0"],
)
def test_anything_else_is_none(target: str) -> None:
    assert location_of(target) is None


@given(st.text(max_size=200), st.sampled_from(["http://", "HTTPS://", " https://", "https://x.example/", ""]))
def test_whatever_it_is_it_can_stand_in_a_header(text: str, head: str) -> None:
    location = location_of(head + text)
    if location is not None:
        assert location.isascii()
        assert location.isprintable()
        assert " " not in location
        assert location.lower().startswith(("http://", "https://"))
