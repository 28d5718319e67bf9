"""Which links an HTML document has, against other parsers and against documents that were made to mislead."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from relay.delivery.html_links import BodyEnd, Link, UsualLinks, links, unescape
from tests.security.long_messages import grows
from tests.unit.delivery.test_tracking import LINK, payload, restored, tracked


def hrefs(document: str) -> list[str]:
    octets = document.encode()
    return [octets[link.start : link.end].decode() for link in each(octets) if isinstance(link, Link)]


def each(document: bytes) -> Iterator[Link | BodyEnd]:
    """Every link by itself."""
    for found in links(document):
        if isinstance(found, UsualLinks):
            yield from (Link(*span) for span in found.spans)
        else:
            yield found


@pytest.mark.parametrize(
    ("document", "found"),
    [
        # Comments end as HTML has it; what is behind them is shown.
        ('<!--[if !mso]><!--><a href="1">x</a><!--<![endif]-->', ["1"]),
        ('<!--[if mso]><a href="1"><![endif]--><!--[if !mso]><!-- --><a href="2"><!--<![endif]-->', ["1", "2"]),
        ('<!--><a href="1">', ["1"]),
        ('<!---><a href="1">', ["1"]),
        ('<!-- x --!><a href="1">', ["1"]),
        ('<!-- <!-- --><a href="1">', ["1"]),
        ('<![if !mso]><a href="1"><![endif]>', ["1"]),
        ('<!doctype html><?xml <a href="0"> ?><a href="1">', ["1"]),
        ('</ <a href="0"> ><a href="1">', ["1"]),
        # What a conditional comment leaves open ends with it.
        ('<!--[if mso]><a href="0 <![endif]--><a href="1">', ["1"]),
        ("<!--[if mso]><textarea><![endif]--><a href='1'>", ["1"]),
        ("<!--[if mso]><template><![endif]--><a href='1'>", ["1"]),
        # Elements whose content is text, or is not shown.
        ("<template><template></template><a href='0'></template><a href='1'>", ["1"]),
        ("<template><p title='</template>'><a href='0'></template><a href='1'>", ["1"]),
        ("<textarea></textareas><a href='0'></TEXTAREA ><a href='1'>", ["1"]),
        ("<script>'</scripts>'<a href='0'></script/><a href='1'>", ["1"]),
        ("<svg/><a href='1'>", ["1"]),
        ("<svg><style><a href='0'></svg><a href='1'>", ["1"]),
        ("<title><a href='0'></title><a href='1'>", ["1"]),
        ("<plaintext><a href='0'>", []),
        # HTML's blanks are five, and no other character is one.
        ("<a href=1\xa02>", ["1\xa02"]),
        ("<a\x0chref=1>", ["1"]),
        ("<a\x0bhref=1>", []),
        ("<a\xa0href=1>", []),
        # Attributes.
        ("<a href='1' href='2'>", ["1"]),
        ("<a HREF = 1>", ["1"]),
        ("<a title=href='0' href='1'>", ["1"]),
        ("<a data-href='0' href='1'>", ["1"]),
        ("<a title='x' href='1' >", ["1"]),
        ("<a title='x'href='1'>", ["1"]),
        ("<a/href='1'>", ["1"]),
        ("<a href=>", [""]),
        ("<a href>", [""]),
        ("<abbr href='0'>", []),
        ("< a href='0'>", []),
        ("</a href='0'>", []),
        ("<a =href='0'>", []),
        ('<p ="y="><a href="0">"><a href="1">', ["1"]),
        ("<p title='<a href=0>'>", []),
        ("</p title='><a href=0>'><a href='1'>", ["1"]),
    ],
)
def test_links_are_those_of_html(document: str, found: list[str]) -> None:
    assert hrefs(document) == found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a?b=1&amp;c=2", "a?b=1&c=2"),
        ("a?b=1&ampc=2", "a?b=1&ampc=2"),
        ("a?b=1&copy=2", "a?b=1&copy=2"),
        ("a?b=1&section=2", "a?b=1&section=2"),
        ("a?b=1&copy;=2", "a?b=1©=2"),
        ("a?b&copy", "a?b©"),
        ("a?b&copy-", "a?b©-"),
        ("a?b&unknown;c", "a?b&unknown;c"),
        ("a?b&notit;c", "a?b&notit;c"),
        ("&#104;&#X74;tp", "http"),
        ("&#104x", "hx"),
        ("&#0;&#xD800;&#x110000;&#99999999;", "\ufffd\ufffd\ufffd\ufffd"),
        ("&#128;", "€"),
        ("&amp;amp;", "&amp;"),
        ("&", "&"),
        ("&#;", "&#;"),
    ],
)
def test_references_are_those_of_attributes(written: str, meant: str) -> None:
    assert unescape(written) == meant


#: Pieces of mails, and of what was made to mislead; each is whole in itself, so that other parsers agree on it.
PIECES = (
    '<a href="https://x.example/{}">',
    "<A\nHREF='https://x.example/{}?href=https://no.example'>",
    "<a class=b href=https://x.example/{}>",
    '<a title="a > b" href="https://x.example/{}?a=1&amp;b=2">',
    '<a href="mailto:a@x.example?subject={}">',
    '<a href="#{}">',
    '<a href="tel:+4912{}">',
    "</a>",
    "text &amp; more",
    '<p title=">">',
    "<br/>",
    '<img src="https://no.example/{}" alt="<a href=x>">',
    "<!-- c <a href='https://no.example'> -->",
    "<style>a{{}} /* <a href='https://no.example'> */</style>",
    "<script>\"<a href='https://no.example'>\"</script>",
    "\n",
    "漢字 \U0001f600",
    "<table><tr><td>",
)


class _Links(HTMLParser):
    """What the standard library takes for a link."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(reversed(attrs)).get("href")
        if tag == "a" and href and href.lower().startswith("http"):
            self.links.append(href)


def test_tracked_links_are_those_of_the_standard_library() -> None:
    source = random.Random(15)
    for number in range(400):
        document = "".join(source.choice(PIECES).format(number) for _ in range(source.randrange(1, 40)))
        standard = _Links()
        standard.feed(document)
        result = tracked(document)
        mine = [payload(token)["targetUrl"] for _, token in LINK.findall(result)]
        assert mine == standard.links
        again = _Links()
        again.feed(result)
        assert len(again.links) == len(mine)
        assert restored(result) == document or "&amp;" in document


#: Pieces of tags that do and do not have the form in which nearly all are written.
FRAGMENTS = (
    *(
        "<",
        "<a",
        "<A ",
        "<a/",
        "</",
        "</ ",
        "<!",
        "<?",
        "<p",
        "<td",
        "<o:p",
        "/",
        ">",
        "/>",
        "=",
        '"',
        "'",
        "\n",
        "\x0b",
        "\xa0",
    ),
    *(' href="1"', " href='2'", " href=3", " HREF='4'", ' href ="5"', " href= '6'", ' data-href="7"', " href", "href="),
    *(
        ' x="1"',
        " y='2'",
        " z",
        ' x="<a href=1>"',
        " x='>'",
        ' x="unsubscribe"',
        ' clicktracking="off"',
        "clicktracking",
    ),
    *(
        '<a class="b" href="https://x.example" target="_blank">',
        '<a href="1">',
        "<a href='2'>",
        '<a href="1"x>',
        "</a>",
        "<a>",
    ),
    *('<p class="text">', "</p>", "<P>", "<br/>", "<br />", '<p a="b"c="d">', '<img alt="a > b">', "<abbr>", "</o:p>"),
    *("<!--", "-->", "--!>", "<!-->", "<!--[if mso]>", "<![endif]-->", "<script>", "</script>", "<style>", "</style >"),
    *(
        "<textarea>",
        "</textarea>",
        "<template>",
        "</template>",
        "<svg>",
        "<svg/>",
        "</svg>",
        "<math>",
        "</math>",
        "<title>",
    ),
    *(
        "</title>",
        "<plaintext>",
        "<noscript>",
        "</noscript>",
        '<body class="x">',
        "</body>",
        "</BODY",
        "text",
        "é",
        " " * 25,
    ),
    " x='1'" * 25,
    # Quotes that open no value, and values whose end is one's begin for who counts quotes alone.
    *(
        "<c",
        "<i ",
        "<pl ",
        "<pre ",
        "<x",
        ' ="x"',
        ' a="b',
        ' ="y="',
        ' a=b="c"',
        ' x"="y',
        'x="',
        '_="<"',
        '=">"',
        "<p:",
    ),
    '<img src="a" alt="b" width="1">',
    '<img src="a" alt="b" width="1" height="2">',
    '<table border=0 cellpadding="0">',
)


def test_what_is_passed_over_holds_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tag read by itself says the same as the search that passes over most of them."""
    source = random.Random(16)
    documents = ["".join(source.choices(FRAGMENTS, k=source.randrange(1, 25))).encode() for _ in range(8_000)]
    searched = [found(document) for document in documents]
    monkeypatch.setattr("relay.delivery.html_links._NOTABLE", re.compile(rb"<"))
    for document, by_the_search in zip(documents, searched, strict=True):
        assert by_the_search == found(document), document
    assert sum(map(len, searched)) > 2_000


def found(document: bytes) -> list[tuple[int, ...]]:
    return [(one.start, one.end, one.left_alone) if isinstance(one, Link) else (one.start,) for one in each(document)]


#: Runs of these, whole and cut off, are the worst that a scanner of tags meets.
UNITS = (
    "<",
    "<a ",
    "<a/",
    "<a href=",
    '<a href="',
    "<a x=' ",
    "<a href=http://x.example>",
    "<!--",
    "<!-->",
    "<!--[if",
    "<!--[if mso]>",
    "<!--[if mso]><![endif]-->",
    "--!>",
    "<!----!>",
    "-->",
    "<!",
    "</",
    "</body>",
    "<script>",
    "<textarea></textarea",
    "<template>",
    "<svg>",
    "<svg><script>",
    "&amp;",
    "<a href='&",
    "cid:",
    " ",
    "=",
)


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear(unit: str) -> None:
    """CPU time at doubling sizes: by itself, up to what a mail of 2 MB has where it is slow, and with each other."""

    def time_of(run: str, size: int) -> float:
        document = (run * (size // len(run))).encode()
        began = time.process_time()
        for _ in links(document):
            pass
        return time.process_time() - began

    assert grows(lambda size: time_of(unit, size), 131_072, 0.6) is None
    # The other order is the same run, but for its ends.
    for other in UNITS[UNITS.index(unit) + 1 :]:
        found = grows(lambda size, run=unit + other: time_of(run, size), 100_000, 0.3)  # type: ignore[misc]
        assert found is None, (other, found)
