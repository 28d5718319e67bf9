"""HTML that is damaged, or that shows nothing of what stands beside it: other parts of the message stay visible."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.mail import html_joining, html_text


class _Reader(HTMLParser):
    """The words that are seen of a document, read by another parser."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen += tag in ("style", "script", "title", "template")

    def handle_endtag(self, tag: str) -> None:
        self._unseen -= tag in ("style", "script", "title", "template")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.words += re.findall(r"word\d", data)


def _seen(html: str) -> list[str]:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.words


#: A document, and the words that are seen of it.
DAMAGED = [
    ('<p>word1</p><a href="x>word2</a>', ["word1", "word2"]),
    ("<p>word1</p><a title='it\">word2</a>", ["word1", "word2"]),
    ('<html><body bgcolor="red>word1</body></html>', ["word1"]),
    ('<table width=1 title="x><tr><td>word1</table>', ["word1"]),
    ("<html><head></head><frameset cols=1><frame src=x></frameset></html>", []),
    ("<FRAMESET><FRAME></FRAMESET>", []),
    ("<template>word1</template><p>word2", ["word2"]),
    ("<p>word1<template><p>word2</body>", ["word1"]),
    ("<html><head><template><body>word1</body></template></head><body>word2</body></html>", ["word2"]),
    ("<html><head><meta name=x>word1</head><body>word2</body></html>", ["word1", "word2"]),
    ("<html><head>word1</html>", ["word1"]),
]


@pytest.mark.parametrize(("html", "words"), DAMAGED)
def test_what_stands_beside_damaged_html_is_seen(html: str, words: list[str]) -> None:
    for pieces, expected in (
        ([html, "<p>word8</p>"], [*words, "word8"]),
        (["word7<br>", html], ["word7", *words]),
        (["word7", html, '<a href="x">word8</a>'], ["word7", *words, "word8"]),
        (["<html><body>word7</body></html>", html], ["word7", *words]),
    ):
        joined = html_joining.join(pieces)
        assert _seen(joined) == expected
        assert "frame" not in joined.lower()
        assert re.findall(r"word\d", html_text.reduced(joined)) == expected


@given(st.lists(st.sampled_from([html for html, _ in DAMAGED] + ["<p>word3</p>", "word4"]), min_size=2, max_size=4))
def test_damaged_html_beside_damaged_html(pieces: list[str]) -> None:
    words = dict(DAMAGED)
    expected = [word for piece in pieces for word in words.get(piece, re.findall(r"word\d", piece))]
    assert sorted(_seen(html_joining.join(pieces))) == sorted(expected)


def test_one_piece_stays_as_it_is() -> None:
    for html, _ in DAMAGED:
        assert html_joining.join([html]) == html


def test_text_in_a_head_ends_it_and_is_read() -> None:
    assert html_text.reduced("<head><title>t</title>\n<meta name=x>seen<style>s</style> too") == "seen too"
    assert html_text.reduced("<template><p>unseen<template></template>unseen</template>seen</template>!") == "seen!"
