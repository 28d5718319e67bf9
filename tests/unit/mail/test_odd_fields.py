"""Header fields in forms that RFC 2045, RFC 2183, RFC 2369 and RFC 5322 allow, and in some that programs write."""

from __future__ import annotations

import base64
from email import policy
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.records import StoredAttachment
from relay.mail import Message, Unusable, parse
from relay.mail.message import Fault

CYRILLIC = "Привет, мир"


def _message(fields: str, body: bytes = b"x") -> Message:
    return parse(b"From: a@b.example\r\nSubject: s\r\n" + fields.encode() + b"\r\n\r\n" + body)


def _attachment(fields: str) -> StoredAttachment:
    head = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ntext\r\n--b\r\n"
    message = parse(f"From: a@b.example\r\n{head}{fields}\r\n\r\nx\r\n--b--\r\n".encode())
    assert message.text == "text"
    return message.attachments[0]


@pytest.mark.parametrize(
    "parameters",
    [
        "charset=koi8-r (Cyrillic)",
        "charset=koi8-r (a (nested) one)",
        "charset=koi8-r\t(Cyrillic); format=fixed",
        'charset="koi8-r" (Cyrillic)',
        "(before) charset=koi8-r",
        "format=fixed (not flowed); charset=koi8-r (c)",
    ],
)
def test_a_comment_behind_a_parameter_is_none_of_it(parameters: str) -> None:
    assert _message(f"Content-Type: text/plain; {parameters}", CYRILLIC.encode("koi8-r")).text == CYRILLIC


def test_brackets_of_a_file_name_are_part_of_it() -> None:
    disposition = "Content-Type: application/pdf\r\nContent-Disposition: attachment; filename="
    assert _attachment(disposition + "report (1).pdf").filename == "report (1).pdf"
    assert _attachment(disposition + 'report.pdf"').filename == "report.pdf"


@pytest.mark.parametrize(
    "encoding",
    ["base64 (MIME)", "(c) base64", "(a (b) c) base64", "(a (b) (c (d))) base64 (e (f))", "(\t)\tBASE64", '"base64"'],
)
def test_comments_around_an_encoding(encoding: str) -> None:
    body = base64.b64encode(b"hello")
    assert _message(f"Content-Transfer-Encoding: {encoding}", body).text == "hello"


@pytest.mark.parametrize(
    "value",
    ["'text/html'", "`text/html`", "<text/html>", "'text/html'; charset='koi8-r'", "'text/html; charset=koi8-r'"],
)
def test_a_type_in_other_quotes_or_brackets(value: str) -> None:
    message = _message(f"Content-Type: {value}", "<p>Привет".encode("koi8-r"))
    assert (message.text, message.attachments) == ("", ())
    assert message.html == "<p>Привет" or "koi8" not in value


@pytest.mark.parametrize("kind", ["multipart", "multipart/", "Multipart"])
def test_half_a_type_of_several_parts_is_mixed(kind: str) -> None:
    message = _message(f"Content-Type: {kind}; boundary=b", b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n")
    assert message.text == "one\ntwo"


@pytest.mark.parametrize(
    "value",
    ["<i@x>", "i@x", " <i@x> (logo)", "(logo) <i@x>", "< i@x >", "<i@x><j@x>", "<i@\r\n x>", "\r\n <i@x>"],
)
def test_the_content_id_is_what_its_brackets_hold(value: str) -> None:
    assert _attachment(f"Content-Type: image/png\r\nContent-ID: {value}").content_id == "i@x"


@given(st.permutations(["From: a@b.example", "To: c@d.example", "Subject: s", "X-Own: y"]), st.integers(0, 3))
def test_a_byte_order_mark_before_any_field_changes_nothing(fields: list[str], marked: int) -> None:
    end = ["Content-Type: text/html", "", "<p>"]
    plain = parse("\r\n".join([*fields, *end]).encode())
    message = parse("\r\n".join([*fields[:marked], "\ufeff" + fields[marked], *fields[marked + 1 :], *end]).encode())
    for name in ("sender", "to", "subject", "html", "headers"):
        assert getattr(plain, name) == getattr(message, name)


@pytest.mark.parametrize(
    "html", ["<p>Note:one</p>", "<p>a: b</p>\r\n<p>c: d</p>", "<a:b>", '<html><body style="x:y">\r\nText: more']
)
@pytest.mark.parametrize("before", ["", "Subject: s\r\n"])
def test_html_without_an_empty_line_before_it_is_no_header_field(html: str, before: str) -> None:
    message = parse(f"{before}From: a@b.example\r\nContent-Type: text/html\r\n{html}".encode())
    assert (message.html, message.headers) == (html.replace("\r\n", "\n"), {})
    part = f"Content-Type: text/html\r\n{html}"
    mixed = f"From: a@b.example\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n{part}\r\n--b--\r\n"
    assert parse(mixed.encode()).html == html.replace("\r\n", "\n")


@pytest.mark.parametrize("end", ["\r\n", "\r\n\r\nmore", ""])
def test_a_url_without_an_empty_line_before_it_is_no_header_field(end: str) -> None:
    message = parse(f"From: a@b.example\r\nSubject: s\r\nhttps://x.example/y{end}".encode())
    assert message.text == f"https://x.example/y{end}".replace("\r\n", "\n")
    assert (message.subject, message.headers) == ("s", {})


def test_a_line_of_html_among_header_fields_is_skipped() -> None:
    message = parse(b"From: a@b.example\r\n<br>Warning: x\r\nSubject: s\r\n\r\ntext")
    assert (message.subject, message.text, message.headers) == ("s", "text", {})


def test_a_byte_order_mark_before_the_first_delimiter_hides_no_part() -> None:
    body = "\ufeff--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n".encode()
    assert _message("Content-Type: multipart/mixed; boundary=b", body).text == "one\ntwo"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("<https://x.example/ü?ä=1>", "<https://x.example/%C3%BC?%C3%A4=1>"),
        ("<https://x.example/a\r\n b>,\r\n <mailto:u@x.example>", "<https://x.example/ab>, <mailto:u@x.example>"),
        ("=?us-ascii?q?=3Chttps=3A//x=2Eexample/a=3E?=", "<https://x.example/a>"),
        (
            "=?utf-8?q?=3Chttps=3A//x=2Eexample/a=3E=2C?=\r\n =?utf-8?q?_=3Cmailto=3Au=40x=2Eexample=3E?=",
            "<https://x.example/a>, <mailto:u@x.example>",
        ),
        ("=?utf-8?q?=3Chttps=3A//x=2Eexample/a=0D=0AX-Evil=3A_b=3E?=", "<https://x.example/a X-Evil: b>"),
    ],
)
def test_urls_of_a_list_are_readable(value: str, stored: str) -> None:
    assert _message(f"List-Unsubscribe: {value}").headers["List-Unsubscribe"] == stored


@pytest.mark.parametrize("name", ["Sender", "Errors-To", "Disposition-Notification-To", "Resent-From", "X-Owner"])
@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("=?utf-8?b?SsO2cmcgPGpAeC5leGFtcGxlPg==?=", "=?utf-8?B?SsO2cmc=?= <j@x.example>"),
        ("=?utf-8?q?J=C3=B6rg?=\r\n =?utf-8?q?_=3Cj=40x=2Eexample=3E?=", "=?utf-8?B?SsO2cmc=?= <j@x.example>"),
        ("=?utf-8?q?J=C3=B6rg?= <j@x.example>", "=?utf-8?q?J=C3=B6rg?= <j@x.example>"),
        ("=?utf-8?q?J=C3=B6rg_=40_home?=", "=?utf-8?q?J=C3=B6rg_=40_home?="),
        ("=?utf-8?q?J=C3=B6rg_=3Cj=40x=2Eexample=3E=0D=0AX=3A_y?=", None),
    ],
)
def test_an_address_in_encoded_words_is_stored_outside_of_them(name: str, value: str, stored: str | None) -> None:
    found = _message(f"{name}: {value}").headers[name]
    assert "\n" not in found
    assert stored is None or found == stored


@pytest.mark.parametrize("key", ["References", "In-Reply-To"])
@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("<a@x> <b@x>", "<a@x> <b@x>"),
        ("<a@\r\n x>\r\n\t<b@x>", "<a@x> <b@x>"),
        ("=?utf-8?q?=3Ca=40x=3E?=\r\n =?utf-8?q?_=3Cb=40x=3E?=", "<a@x> <b@x>"),
    ],
)
def test_message_ids_are_readable(key: str, value: str, stored: str) -> None:
    assert _message(f"{key}: {value}").headers[key] == stored


def test_a_subject_begins_with_no_byte_order_mark() -> None:
    assert _message("X: y").subject == "s"
    assert parse("From: a@b.example\r\nSubject: \ufeffGrüße\r\n\r\nx".encode()).subject == "Grüße"


@pytest.mark.parametrize("length", [20, 61, 100, 200, 250])
def test_pythons_library_folds_fields_without_blanks_into_encoded_words(length: int) -> None:
    token = ("0123456789abcdef" * 16)[:length]
    written = EmailMessage(policy=policy.SMTP)
    written["From"] = "a@b.example"
    written["X-OpenSend-Tag"] = f"name={token}"
    written["Idempotency-Key"] = token
    written["List-Unsubscribe"] = f"<https://x.example/{token}>, <mailto:a@b.example>"
    written["References"] = f"<{token}@x.example> <b@x.example>"
    written.set_content("x")
    message = parse(bytes(written))
    assert message.tags == (("name", token),)
    assert message.idempotency_key == token
    assert message.headers["List-Unsubscribe"] == f"<https://x.example/{token}>, <mailto:a@b.example>"
    assert message.headers["References"] == f"<{token}@x.example> <b@x.example>"


@pytest.mark.parametrize("length", [20, 61, 100, 300])
def test_a_content_id_that_pythons_library_wrote_is_what_the_link_names(length: int) -> None:
    content_id = f"{('0123456789abcdef' * 20)[:length]}@x.example"
    written = EmailMessage(policy=policy.SMTP)
    written["From"] = "a@b.example"
    written.set_content(f"<img src=cid:{content_id}>", subtype="html")
    written.add_related(b"PNG", "image", "png", cid=f"<{content_id}>")
    assert [each.content_id for each in parse(bytes(written)).attachments] == [content_id]


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ("Idempotency-Key: =?utf-8?q?a=0D=0Ab?=", Fault.BAD_IDEMPOTENCY_KEY),
        (f"Idempotency-Key: =?utf-8?q?{'k' * 257}?=", Fault.BAD_IDEMPOTENCY_KEY),
        ("Idempotency-Key: =?utf-8?q??=", Fault.BAD_IDEMPOTENCY_KEY),
        ("Idempotency-Key: a\r\nIdempotency-Key: =?utf-8?q?b?=", Fault.BAD_IDEMPOTENCY_KEY),
        ("X-OpenSend-Tag: =?utf-8?q?name=3Dv=0D=0A?=", Fault.BAD_TAG),
        ("X-OpenSend-Tag: =?utf-8?q?n=C3=A4me=3Dv?=", Fault.BAD_TAG),
    ],
)
def test_what_encoded_words_hold_is_held_to_the_same_rules(field: str, fault: Fault) -> None:
    with pytest.raises(Unusable) as caught:
        _message(field)
    assert caught.value.fault is fault
