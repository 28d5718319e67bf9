"""Structure that programs get wrong, and what it means all the same."""

from __future__ import annotations

import base64
import dataclasses
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mail import Limits, Message, Unusable, parse

_HEAD = b"From: Ann <ann@shop.example>\r\nTo: ben@mail.example\r\nSubject: order\r\nMIME-Version: 1.0\r\n"
_MARK = b"\xef\xbb\xbf"


def _read(raw: bytes) -> Message:
    """Both ways lead to the same message, whichever parser reads it."""
    short, long = (
        dataclasses.replace(parse(raw, Limits(), shortcuts=shortcuts), parser="") for shortcuts in (True, False)
    )
    assert short == long
    return short


# --- a byte order mark before a header block

_PARTS = st.sampled_from(
    [
        b"Content-Type: text/plain\r\n\r\nwords",
        b"Content-Type: text/html; charset=utf-8\r\n\r\n<p>words</p>",
        b"Content-Type: application/pdf; name=a.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJD",
        b"Content-Type: multipart/alternative; boundary=in\r\n\r\n--in\r\n\r\na\r\n--in\r\n"
        b"Content-Type: text/html\r\n\r\nb\r\n--in--",
        b"Content-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nx",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_PARTS, st.booleans()), min_size=1, max_size=4), st.booleans(), st.integers(1, 2))
def test_a_byte_order_mark_before_headers_changes_nothing(
    parts: list[tuple[bytes, bool]], before_the_message: bool, count: int
) -> None:
    def message(marked: bool) -> bytes:
        head = _HEAD + b"Content-Type: multipart/mixed; boundary=cut\r\n\r\n"
        mark = _MARK * count if marked else b""
        pieces = [b"--cut\r\n" + (mark if here else b"") + part + b"\r\n" for part, here in parts]
        return (mark if before_the_message else b"") + head + b"".join(pieces) + b"--cut--\r\n"

    assert _read(message(marked=True)) == _read(message(marked=False))


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(
    "before",
    [_MARK, _MARK + _MARK, _MARK + b"From x Mon Nov\r\n", b"From x Mon Nov\r\n" + _MARK, _MARK + b"\r\n", _MARK + b" "],
)
def test_what_stands_with_a_byte_order_mark_is_skipped(before: bytes, end: bytes) -> None:
    raw = (_HEAD + b"Content-Type: text/plain\r\n\r\nwords").replace(b"\r\n", end)
    assert _read(before.replace(b"\r\n", end) + raw) == _read(raw)


# --- no empty line before the first delimiter


@pytest.mark.parametrize("boundary", [b"bb", b"=_Part_1:2", b"b b", b"----=_NextPart_000"])
@pytest.mark.parametrize("kind", [b"alternative", b"mixed", b"related"])
@pytest.mark.parametrize("fold", [b"", b"X-After: 1\r\n", b"X-After: 1\r\n folded\r\n"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_delimiter_line_ends_the_header_block_that_declares_it(
    boundary: bytes, kind: bytes, fold: bytes, depth: int
) -> None:
    def message(empty_line: bytes) -> bytes:
        fields = b'Content-Type: multipart/%s;\r\n boundary="%s"\r\n%s' % (kind, boundary, fold)
        texts = [b"Content-Type: text/plain\r\n\r\nplain\r\n", b"Content-Type: text/html\r\n\r\n<p>html</p>\r\n"]
        body = b"".join(b"--%s\r\n%s" % (boundary, text) for text in texts)
        part = fields + empty_line + body + b"--%s--\r\n" % boundary
        if depth:
            part = b"Content-Type: multipart/mixed; boundary=out\r\n\r\n--out\r\n" + part + b"--out--\r\n"
        return _HEAD + part

    with_line, without = _read(message(b"\r\n")), _read(message(b""))
    assert without == with_line
    assert "plain" in with_line.text


def test_a_line_that_is_another_boundary_ends_no_header_block() -> None:
    raw = _HEAD + b"Content-Type: multipart/mixed; boundary=bb\r\n--bc: 1\r\nX-Own: 2\r\n\r\n--bb\r\n\r\nx\r\n--bb--"
    message = _read(raw)
    assert message.text == "x"
    assert "X-Own" in message.headers


# --- a close delimiter without a part


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"--cut--\r\n", "\n"),
        (b"\r\n--cut--\r\n\r\n", "\n"),
        (b"before\r\n--cut--\r\n", "before"),
        (b"--cut--\r\nafter\r\n", "after\n"),
        (b"before\r\n--cut--\r\nafter", "before\nafter"),
        (b"--cut--\r\n--cut--\r\n", "\n"),
        (b"--cut--", "\n"),
    ],
)
def test_a_lone_close_delimiter_is_no_text(body: bytes, text: str) -> None:
    assert _read(_HEAD + b"Content-Type: multipart/mixed; boundary=cut\r\n\r\n" + body).text == text


# --- values that are no media type, and those that are one in other clothes


@pytest.mark.parametrize(
    ("value", "html"),
    [
        (b"text / html; charset=utf-8", True),
        (b"text/ html", True),
        (b"text /html;charset=utf-8", True),
        (b'"text/html"; charset=utf-8', True),
        (b'"text/html; charset=utf-8"', True),
        (b'"text / html"; charset=utf-8', True),
        (b"text/(comment)html", True),
        (b"(comment) text/html (comment)", True),
        (b"TEXT/HTML", True),
        (b"html", True),
        (b"text", False),
        (b"charset=utf-8", False),
        (b"; charset=utf-8", False),
        (b"text/html/x", False),
        (b"text = html", False),
    ],
)
def test_a_media_type_in_other_clothes(value: bytes, html: bool) -> None:
    message = _read(_HEAD + b"Content-Type: " + value + b"\r\n\r\n<p>gr\xc3\xbcn</p>")
    assert (message.html, message.text) == (("<p>grün</p>", "") if html else ("", "<p>grün</p>"))
    assert message.attachments == ()


def test_parameters_without_a_value_before_them() -> None:
    text = "Привет"
    message = _read(_HEAD + b"Content-Type: charset=koi8-r\r\n\r\n" + text.encode("koi8-r"))
    assert message.text == text
    for disposition in (b'filename="r.pdf"', b"filename=r.pdf", b"filename*=utf-8''r.pdf", b'; filename="r.pdf"'):
        part = b"Content-Type: application/pdf\r\nContent-Disposition: " + disposition + b"\r\n\r\nx"
        (attached,) = _read(_HEAD + part).attachments
        assert attached.filename == "r.pdf"


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (b'Content-Disposition: inline; filename="logo.png"\r\nContent-ID: <logo>', "image/png"),
        (b"Content-Type: png; name=logo.png", "image/png"),
        (b"Content-Type: name=logo.JPG\r\nContent-ID: <logo>", "image/jpeg"),
        (b"Content-Disposition: filename=logo.gif\r\nContent-ID: <logo>", "image/gif"),
        (b"Content-Disposition: attachment; filename=paper.pdf", "application/pdf"),
        (b"Content-Disposition: attachment; filename=notes.txt", "text/plain"),
        (b"Content-Disposition: attachment; filename=unknown.zzz", "text/plain"),
        (b"Content-Type: text/plain; name=logo.png\r\nContent-Disposition: attachment", "text/plain"),
    ],
)
def test_the_file_name_decides_the_type_where_nothing_else_does(fields: bytes, kind: str) -> None:
    part = fields + b"\r\nContent-Transfer-Encoding: base64\r\n\r\nR0lG"
    raw = (
        _HEAD
        + b"Content-Type: multipart/related; boundary=cut\r\n\r\n--cut\r\n"
        + b"Content-Type: text/html\r\n\r\n<p>\r\n--cut\r\n"
    )
    message = _read(raw + part + b"\r\n--cut--\r\n")
    (attached,) = message.attachments
    assert (attached.content_type, base64.b64decode(attached.content)) == (kind, b"GIF")


# --- charsets that HTML declares in itself


@pytest.mark.parametrize(
    "head",
    [
        '<meta charset="{0}">',
        "<META CHARSET={0}>",
        '<meta http-equiv="Content-Type" content="text/html; charset={0}">',
        "<meta content='text/html;charset={0}' http-equiv=content-type />",
        '<?xml version="1.0" encoding="{0}"?><html>',
        "<!-- <meta charset=koi8-u> --><meta charset={0}>",
    ],
)
@pytest.mark.parametrize("label", ["", "; charset=us-ascii", "; charset=unknown-8bit", "; charset=x-unknown"])
@pytest.mark.parametrize(
    ("charset", "text"), [("windows-1251", "Заказ принят"), ("gb2312", "谢谢"), ("iso-8859-2", "łączę")]
)
def test_the_charset_that_html_declares_counts_where_the_header_has_none(
    head: str, label: str, charset: str, text: str
) -> None:
    body = (head.format(charset) + "<body>" + text).encode(charset)
    raw = _HEAD + b"Content-Type: text/html" + label.encode() + b"\r\n\r\n" + body
    assert _read(raw).html == head.format(charset) + "<body>" + text


@pytest.mark.parametrize("declared", ["iso-8859-1", "gbk", "utf-16", "koi8-r", "x-unheard-of", "utf-7"])
def test_utf_8_is_utf_8_whatever_html_declares(declared: str) -> None:
    html = f"<meta charset={declared}><p>日本語 grün"
    assert _read(_HEAD + b"Content-Type: text/html\r\n\r\n" + html.encode()).html == html


def test_a_header_that_names_a_charset_counts_before_html() -> None:
    html = "<meta charset=windows-1251>" + "łączę"
    raw = _HEAD + b"Content-Type: text/html; charset=iso-8859-2\r\n\r\n" + html.encode("iso-8859-2")
    assert _read(raw).html == html


# --- line ends


@pytest.mark.parametrize(
    ("encoding", "body", "text"),
    [
        (b"7bit", b"one\r\r\ntwo\r\r\r\nthree\r\n", "one\ntwo\nthree\n"),
        (b"7bit", b"one\rtwo\r\rthree", "one\ntwo\n\nthree"),
        (b"quoted-printable", b"one=0D=0Atwo=0Athree=0Dfour", "one\ntwo\nthree\nfour"),
        (b"quoted-printable", b"one=\r\r\n two\r\r\nthree", "one two\nthree"),
        (b"base64", base64.b64encode(b"one\r\ntwo\nthree\rfour\r\r\nfive"), "one\ntwo\nthree\nfour\nfive"),
    ],
)
@pytest.mark.parametrize("kind", [b"plain", b"html"])
def test_every_line_end_of_a_body_is_one_lf(encoding: bytes, body: bytes, text: str, kind: bytes) -> None:
    fields = b"Content-Type: text/" + kind + b"\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n"
    message = _read(_HEAD + fields + body)
    assert (message.html if kind == b"html" else message.text) == text


def test_a_whole_message_with_cr_cr_lf() -> None:
    raw = _HEAD + (
        b"Content-Type: multipart/mixed; boundary=cut\r\n\r\n--cut\r\nContent-Type: text/plain\r\n\r\none\r\ntwo\r\n"
        b"--cut\r\nContent-Type: text/html\r\n\r\n<p>\r\n--cut--\r\n"
    )
    assert _read(raw.replace(b"\r\n", b"\r\r\n")) == _read(raw)


# --- content ids


@pytest.mark.parametrize("length", [10, 77, 255, 256, 900])
def test_a_content_id_stays_whole(length: int) -> None:
    name = b"c" * length + b"@x.example"
    raw = _HEAD + (
        b"Content-Type: multipart/related; boundary=cut\r\n\r\n--cut\r\nContent-Type: text/html\r\n\r\n<img src=cid:"
        + name
    )
    message = _read(
        raw + b">\r\n--cut\r\nContent-Type: image/gif\r\nContent-ID: <" + name + b">\r\n\r\nGIF\r\n--cut--\r\n"
    )
    (image,) = message.attachments
    assert image.content_id == name.decode()
    assert f"cid:{image.content_id}>" in message.html
    assert len(image.filename) <= 255


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_octets_raise(octets: bytes) -> None:
    for raw in (_HEAD + b"Content-Type: " + octets, _HEAD + octets, _MARK + octets):
        with suppress(Unusable):
            parse(raw)
