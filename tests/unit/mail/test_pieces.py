"""What a reader sees of a message with several texts: each word once in each form, in the order of the parts."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.mail import Fault, Limits, Unusable, html_joining, html_text, parse

_HEAD = b"From: a@b.example\r\nTo: c@d.example\r\nMIME-Version: 1.0\r\n"


# --- the model: which words are seen where


@dataclass(frozen=True)
class Text:
    """A part of text with one word that is seen. `shape` is where the word stands in it."""

    subtype: str
    shape: str


@dataclass(frozen=True)
class File:
    """A part that is no text."""

    fields: bytes


@dataclass(frozen=True)
class Parts:
    """A multipart."""

    subtype: str
    children: tuple[Text | File | Parts, ...]


Node = Text | File | Parts
#: The words of a piece in its plain form and in its HTML form.
Piece = tuple[tuple[str, ...] | None, tuple[str, ...] | None]

_PLAIN = {
    "word": "{0}",
    "lines": "\n{0}\n\n",
    "markup": "<b>&amp; {0} </body> <!-- ",
    "blanks": "  \t{0}   ",
    "blank": " \n\t\n",
}
_HTML = {
    "fragment": "<p>{0}</p>",
    "bare": "{0}",
    "document": "<!DOCTYPE html>\n<html><head><title>unseen</title><style>p {{}}</style></head>"
    "<body bgcolor=white><p>{0}</p></body></html>\n",
    "no body": "<html><head><meta charset=utf-8></head><p>{0}</html>",
    "body only": "<BODY\nclass='a>b'>{0}</BODY>",
    "after the body": "<html><body></body></html>{0}",
    "before the body": "<html>{0}<body></body></html>",
    "comment with a body": "<!-- <body> --><html><body>{0}<!-- </body> --></body></html>",
    "open comment": "<html><body>{0}<!-- unseen",
    "open style": "{0}<style>unseen",
    "open script": "<body>{0}<script>'</body>' unseen",
    "open tag": "<body>{0}<p class='x'",
    "head left open": "<html><head><style>unseen</style><title>unseen</title><p>{0}</p>",
    "script": "<script>document.write('<body>unseen</body>')</script>{0}",
    "conditional": "<html><body><!--[if mso]><p>unseen</p><![endif]--><![if !mso]>{0}<![endif]></body></html>",
    "attribute": "<a title=\"</body>\" href='http://x.example/?a=1&b'>{0}</a>",
    "entity": "&lt;{0}&gt; &amp;nbsp;",
    "table": "<table><tr><td>{0}</td></tr></table>",
    "blank": "\r\n \r\n",
}


def expected(node: Node, words: dict[int, str]) -> list[Piece]:
    """The pieces of a part, by the rule in docs/mime.md."""
    if isinstance(node, File):
        return []
    if isinstance(node, Text):
        word = (words[id(node)],)
        return [] if node.shape == "blank" else [(None, word) if node.subtype == "html" else (word, None)]
    below = [expected(child, words) for child in node.children]
    if node.subtype == "alternative":
        plain = [pieces for pieces in below if pieces and all(piece[0] is not None for piece in pieces)]
        html = [pieces for pieces in below if any(piece[1] is not None for piece in pieces)]
        forms = (_form(plain[-1], 0) if plain else None, _form(html[-1], 1) if html else None)
        return [forms] if plain or html else []
    if node.subtype == "related":
        return next((pieces for child, pieces in zip(node.children, below, strict=True) if _has_text(child)), [])
    if node.subtype == "signed":
        return below[0]
    return [piece for pieces in below for piece in pieces]


def _form(pieces: list[Piece], form: int) -> tuple[str, ...]:
    return tuple(word for piece in pieces for word in (piece[1 - form] if piece[form] is None else piece[form]) or ())


def _has_text(node: Node) -> bool:
    return isinstance(node, Text) or (isinstance(node, Parts) and any(map(_has_text, node.children)))


def _texts(node: Node) -> list[Text]:
    if isinstance(node, Parts):
        return [text for child in node.children for text in _texts(child)]
    return [node] if isinstance(node, Text) else []


def build(node: Node, words: dict[int, str], numbers: itertools.count[int]) -> bytes:
    if isinstance(node, File):
        return node.fields + b"\r\n\r\nunseen"
    if isinstance(node, Text):
        body = (_HTML if node.subtype == "html" else _PLAIN)[node.shape].format(words[id(node)])
        return f"Content-Type: text/{node.subtype}; charset=utf-8\r\n\r\n{body}".encode()
    boundary = b"part-%d" % next(numbers)
    parts = b"".join(b"--%s\r\n%s\r\n" % (boundary, build(child, words, numbers)) for child in node.children)
    return b"Content-Type: multipart/%s; boundary=%s\r\n\r\n%s--%s--\r\n" % (
        node.subtype.encode(),
        boundary,
        parts,
        boundary,
    )


def _copies(node: Node) -> Node:
    """The same with every part a separate object, as each has a different word."""
    if isinstance(node, Parts):
        return Parts(node.subtype, tuple(map(_copies, node.children)))
    return Text(node.subtype, node.shape) if isinstance(node, Text) else node


_TEXTS = st.builds(Text, st.just("html"), st.sampled_from(sorted(_HTML))) | st.builds(
    Text, st.just("plain"), st.sampled_from(sorted(_PLAIN))
)
_FILES = st.sampled_from(
    [
        File(b"Content-Type: image/png\r\nContent-Disposition: inline"),
        File(b"Content-Type: text/plain\r\nContent-Disposition: attachment"),
        File(b"Content-Type: text/calendar; method=REQUEST"),
        File(b"Content-Type: application/pgp-signature"),
    ]
)
_NODES = st.recursive(
    _TEXTS | _FILES,
    lambda children: st.builds(
        Parts,
        st.sampled_from(["mixed", "mixed", "alternative", "related", "report", "signed", "parallel"]),
        st.lists(children, min_size=1, max_size=4).map(tuple),
    ),
    max_leaves=8,
)


class _Reader(HTMLParser):
    """The words that are seen of a document, read by another parser."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self._unseen = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._unseen = self._unseen or tag in ("style", "script", "title")

    def handle_endtag(self, tag: str) -> None:
        self._unseen = self._unseen and tag not in ("style", "script", "title")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.text.append(data)


def _seen(html: str) -> list[str]:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return _words("".join(reader.text))


def _words(text: str) -> list[str]:
    return re.findall(r"word\d+", text)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_NODES)
@example(Parts("mixed", (Text("plain", "word"), Text("html", "document"))))
@example(Parts("mixed", (Text("html", "open comment"), Text("html", "document"), Text("plain", "markup"))))
@example(
    Parts("alternative", (Text("plain", "word"), Parts("mixed", (Text("html", "document"), Text("plain", "word")))))
)
@example(Parts("mixed", (Text("html", "open style"), Text("html", "no body"), Text("html", "after the body"))))
def test_each_word_is_there_once_in_each_form_in_order(shape: Node) -> None:
    node = _copies(shape)
    words = {id(text): f"word{number}" for number, text in enumerate(_texts(node))}
    pieces = expected(node, words)
    raw = _HEAD + build(node, words, itertools.count())
    message = parse(raw)
    html = list(_form(pieces, 1)) if any(piece[1] is not None for piece in pieces) else []
    text = list(_form(pieces, 0)) if any(piece[0] is not None for piece in pieces) else []
    assert _seen(message.html) == html
    assert _words(message.text) == text
    assert bool(message.html) == bool(html)
    assert message.text.strip() or not text
    # A whole message of one form stays one.
    assert message.text == ("" if html else "\n") or text
    assert "unseen" not in message.text
    if message.html.count("<body") + message.html.count("<BODY"):
        assert len(message.html.lower().split("</html>")) <= 2


@settings(max_examples=200, deadline=None)
@given(_NODES, st.sampled_from(["mixed", "report", "parallel"]))
def test_a_wrapper_does_not_change_what_is_seen(shape: Node, subtype: str) -> None:
    def read(node: Node) -> tuple[str, str, int]:
        words = {id(text): f"word{number}" for number, text in enumerate(_texts(node))}
        message = parse(_HEAD + build(node, words, itertools.count()))
        return message.text, message.html, len(message.attachments)

    node = _copies(shape)
    assert read(node) == read(Parts(subtype, (node,)))


# --- one by one


def _mixed(*parts: bytes, kind: bytes = b"mixed") -> bytes:
    return (
        _HEAD
        + b"Content-Type: multipart/%s; boundary=cut\r\n\r\n" % kind
        + b"".join(b"--cut\r\n" + part + b"\r\n" for part in parts)
        + b"--cut--\r\n"
    )


def test_fragments_go_into_the_document_that_they_stand_around() -> None:
    message = parse(
        _mixed(
            b"\r\nbefore",
            b"Content-Type: text/html\r\n\r\n<html><body class=a>one</body></html>",
            b"\r\nafter",
            b"Content-Type: text/html\r\n\r\n<html><head><title>t</title><style>b{}</style></head>"
            b"<body>two</body></html>",
        )
    )
    assert message.html == (
        "<html><body class=a>before<br/>\none<br/>\nafter<br/>\n<style>b{}</style>two</body></html>"
    )
    assert message.text == "before\none\nafter\ntwo"


def test_a_byte_order_mark_before_a_document_is_no_text_of_it() -> None:
    html = b"Content-Type: text/html; charset=utf-8\r\n\r\n\xef\xbb\xbf<html><body>two</body></html>"
    message = parse(_mixed(b"\r\none", html))
    assert (message.html, message.text) == ("<html><body>one<br/>\ntwo</body></html>", "one\ntwo")


def test_html_files_between_attachments_are_joined_and_make_no_text() -> None:
    html = b"Content-Type: text/html\r\n\r\n<html><body>%s</body></html>"
    message = parse(_mixed(html % b"one", b"Content-Type: application/pdf\r\n\r\nx", html % b"two"))
    assert (message.html, message.text) == ("<html><body>one<br/>\ntwo</body></html>", "")
    assert len(message.attachments) == 1


def test_plain_text_is_shown_in_html_as_it_stands() -> None:
    text = "<b> & 'x'\n  two  blanks\n\ttab\n\nend"
    assert html_text.escaped(text) == (
        "&lt;b&gt; &amp; 'x'<br>\n&nbsp; two&nbsp; blanks<br>\n&nbsp;&nbsp;&nbsp; tab<br>\n<br>\nend"
    )
    assert len(html_text.escaped(text)) <= html_text.escaped_size(text)


@given(st.text(st.sampled_from(" \t\na&<>\"'é\U0001f600")))
def test_escaping_is_undone_by_another_parser_and_its_size_is_bounded(text: str) -> None:
    shown = html_text.escaped(text)
    assert len(shown) <= html_text.escaped_size(text)
    reader = _Reader()
    reader.feed(shown.replace("<br>", ""))
    reader.close()
    assert "".join(reader.text).replace("\xa0", " ") == text.replace("\t", "    ")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>one</p><p>two</p>", "one\ntwo"),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<a href='https://x.example/a?b&amp;c'>Shop</a> now", "Shop (https://x.example/a?b&c) now"),
        ("<a href=https://x.example/>x.example</a>", "x.example"),
        ("<a href='mailto:a@b.example'>a@b.example</a>", "a@b.example"),
        ("<a href='#top'>top</a> <a>no</a> <a href=javascript:x()>js</a>", "top no js"),
        ("<a href=http://x.example><img alt='Logo'></a>", "Logo (http://x.example)"),
        ("<a href=http://x.example><img src=cid:a></a>", "(http://x.example)"),
        ("<a href=http://x.example>one <a href=http://y.example>two", "one (http://x.example)two (http://y.example)"),
        ("<head><title>t</title><style>s</style><script>s</script></head>body", "body"),
        ("<style>a{}</style>x<!-- c -->y<script>if (a<b) {}</script>z", "xyz"),
        ("<!-->shown<!--->too<!-- a -- b --!>end", "showntooend"),
        ("a &amp; b &lt;c&gt; &eacute; &#8364; &nosuch; &#x1F600;", "a & b <c> é € &nosuch; \U0001f600"),
        ("a &#" + "9" * 5000 + "; b", "a &#" + "9" * 5000 + "; b"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("<ul><li>a<li>b</ul>", "a\nb"),
        ("<pre>a\n  b</pre>c", "a\n  b\nc"),
        ("  a \r\n\t b&nbsp;c ", "a b c"),
        ("a < b and c <d", "a < b and c <d"),
        ("<div>a<div>b</div></div>c", "a\nb\nc"),
        ("<textarea>a <b></textarea>", "a <b>"),
        ("<style>never closed", ""),
        ("x<title>never closed", "x"),
        ("", ""),
    ],
)
def test_html_as_plain_text(html: str, text: str) -> None:
    assert html_text.reduced(html) == text


_UNITS = [
    *("<", ">", "<a", "<a ", "<a href=", "<a href='", '="', "='", "<!--", "<!-- -", "-->", "-", "<style>", "</style>"),
    *("<a href=x>", "</a>", "<pre>", "&", "&#", "&#1", "&amp;", "&nosuch", " ", "\n", "\t", "<br>", "<p>", "<head>"),
    *("<body>", "</body>", "<!", "<?", "</", "<title>", "a=b ", "<img alt=x>", "<html>", "\xa0", "<x y=z", "'", '"'),
]


@pytest.mark.parametrize("unit", _UNITS)
def test_no_markup_takes_longer_than_its_length(unit: str) -> None:
    for text in (unit * (300_000 // len(unit)), "<p " + unit * (300_000 // len(unit)), "<!--" + unit * 50_000):
        started = time.process_time()
        html_text.reduced(text)
        html_joining.join([text, "<body>x</body>", text])
        html_text.escaped(text)
        assert time.process_time() - started < 5


@pytest.mark.parametrize("plain", [b"&" * 400, b"  " * 200 + b"x", b"x\n" * 200, b"\t" * 200 + b"x"])
def test_what_is_made_of_one_form_for_the_other_is_counted(plain: bytes) -> None:
    raw = _mixed(b"\r\n" + plain, b"Content-Type: text/html\r\n\r\n<p>x</p>")
    made = len(parse(raw).html) - len("<br/>\n<p>x</p>") + 1
    assert parse(raw, Limits(max_attachment_octets=3 * made)).html
    with pytest.raises(Unusable) as caught:
        parse(raw, Limits(max_attachment_octets=made // 2))
    assert caught.value.fault is Fault.ATTACHMENTS_TOO_LARGE


def test_what_is_made_is_counted_together() -> None:
    html = b"Content-Type: text/html\r\n\r\n<p>x</p>"
    one, two = (_mixed(*[b"\r\n" + b"&" * 400] * count, html) for count in (1, 2))
    limits = Limits(max_attachment_octets=3000)
    assert parse(one, limits).html
    with pytest.raises(Unusable):
        parse(two, limits)


# --- which text is a body


def test_a_named_text_is_a_body_where_nothing_else_is() -> None:
    named = b"Content-Type: text/plain; name=letter.txt\r\n\r\nletter"
    pdf = b"Content-Type: application/pdf; name=a.pdf\r\n\r\nx"
    log = b"Content-Type: text/plain; name=log.txt\r\nContent-Disposition: inline\r\n\r\nlog"
    for raw, text, names in (
        (_HEAD + named, "letter", []),
        (_mixed(named, pdf), "letter", ["a.pdf"]),
        (_mixed(pdf, log), "log", ["a.pdf"]),
        (_mixed(named, log), "letter", ["log.txt"]),
        (_mixed(b"\r\nfirst", log), "first", ["log.txt"]),
        (_mixed(named, pdf, kind=b"related"), "letter", ["a.pdf"]),
        (_mixed(named, b"Content-Type: text/html; name=a.html\r\n\r\n<p>", kind=b"alternative"), "letter", []),
        (_mixed(b"\r\nfirst", log.replace(b"inline", b"attachment")), "first", ["log.txt"]),
        (_mixed(b"Content-Type: text/plain; name=empty.txt\r\n\r\n", b"\r\nfirst"), "first", ["empty.txt"]),
    ):
        message = parse(raw)
        assert (message.text, [each.filename for each in message.attachments]) == (text, names)


def test_each_child_of_an_alternative_has_a_first_text_of_its_own() -> None:
    named = b"Content-Type: text/html; name=a.html\r\n\r\n<p>html</p>"
    image = b"Content-Type: image/png; name=a.png\r\n\r\nx"
    inner = (
        b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n" + named + b"\r\n--in\r\n" + image + b"\r\n--in--"
    )
    message = parse(_mixed(b"\r\nplain", inner, kind=b"alternative"))
    assert (message.text, message.html, len(message.attachments)) == ("plain", "<p>html</p>", 1)


@pytest.mark.parametrize("subtype", ["markdown", "x-markdown", "x-log", "enriched", "x-patch", "x-unheard-of", "css"])
def test_text_of_another_kind_is_plain_where_it_is_the_only_one(subtype: str) -> None:
    other = f"Content-Type: text/{subtype}\r\n\r\nother".encode()
    html = b"Content-Type: text/html\r\n\r\n<p>html</p>"
    pdf = b"Content-Type: application/pdf\r\n\r\nx"
    for raw, text, count in (
        (_HEAD + other, "other", 0),
        (_mixed(other, pdf), "other", 1),
        (_mixed(pdf, other), "other", 1),
        (_mixed(b"\r\nplain", other), "plain", 1),
        (_mixed(other, b"\r\nplain"), "plain", 1),
        (_mixed(other, html, kind=b"alternative"), "other", 0),
        (_mixed(b"\r\nplain", other, html, kind=b"alternative"), "plain", 0),
        (_mixed(other, b"\r\nplain", html, kind=b"alternative"), "plain", 0),
        (_mixed(other, pdf, kind=b"related"), "other", 1),
    ):
        message = parse(raw)
        assert (message.text, len(message.attachments)) == (text, count)


@pytest.mark.parametrize(
    "kind", ["calendar; method=REQUEST", "x-vcalendar", "vcard", "x-vcard", "directory", "csv", "rfc822-headers"]
)
def test_text_for_programs_is_always_attached(kind: str) -> None:
    part = f"Content-Type: text/{kind}\r\n\r\nBEGIN".encode()
    html = b"Content-Type: text/html\r\n\r\n<p>html</p>"
    for raw in (_HEAD + part, _mixed(part), _mixed(html, part, kind=b"alternative"), _mixed(part, kind=b"related")):
        (attached,) = parse(raw).attachments
        assert attached.content_type == f"text/{kind}"


def test_amp_is_dropped_beside_other_forms_and_counted() -> None:
    amp = b"Content-Type: text/x-amp-html\r\n\r\n<html amp4email></html>"
    html = b"Content-Type: text/html\r\n\r\n<p>html</p>"
    message = parse(_mixed(b"\r\nplain", amp, html, kind=b"alternative"))
    assert (message.text, message.html, message.attachments, message.dropped_parts) == ("plain", "<p>html</p>", (), 1)
    # Where it is all that there is, it is kept.
    message = parse(_HEAD + amp)
    assert (len(message.attachments), message.dropped_parts) == (1, 0)
