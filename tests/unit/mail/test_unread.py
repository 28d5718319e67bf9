"""A message of which the header alone is read: nothing of it is lost, and nothing gets out that was kept in."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.mail import Fault, Limits, Message, Unusable, parse
from relay.mail.unread import NOTE, UNREAD, parse_header

_NAMES = ["To", "Cc", "Bcc", "Subject", "X-Mailer", "Reply-To", "Message-ID", "Idempotency-Key", "References"]
_CONTENT_NAMES = ["Content-Type", "content-transfer-encoding", "MIME-Version", "CONTENT-ID", "Content-Disposition"]
_values = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
_fields = st.tuples(
    st.sampled_from(_NAMES + _CONTENT_NAMES), st.lists(_values, min_size=1, max_size=3).map("\r\n\t".join)
)


def _read(how: Callable[[bytes, Limits], Message], raw: bytes) -> Message | Fault:
    try:
        return how(raw, Limits())
    except Unusable as unusable:
        return unusable.fault


@given(st.lists(_fields, max_size=8), st.binary(max_size=200), st.sampled_from(["\r\n", "\n"]))
def test_the_header_says_what_it_says_otherwise_and_the_rest_is_attached(
    fields: list[tuple[str, str]], body: bytes, line_end: str
) -> None:
    lines = [f"{name}: {value}" for name, value in [("From", "ann@example.com"), *fields]]
    header = "\r\n".join([*lines, "", ""]).replace("\r\n", line_end).encode()
    read, message = _read(parse, header), _read(parse_header, header + body)
    if isinstance(read, Fault) or isinstance(message, Fault):
        assert read is message
        return
    for name in ("sender", "from_addresses", "to", "cc", "bcc", "reply_to", "subject", "headers", "message_id"):
        assert getattr(message, name) == getattr(read, name)
    assert message.idempotency_key == read.idempotency_key
    assert (message.text, message.html, message.parser) == (NOTE, "", UNREAD)
    (attachment,) = message.attachments
    octets = b64decode(attachment.content)
    assert octets.endswith(body)
    attached = octets[: len(octets) - len(body)]
    names = [line.partition(b":")[0].strip().lower() for line in attached.split(b"\n") if line[:1] not in (b"\t", b"")]
    assert [name for name in names if name] == [name.lower().encode() for name, _ in fields if name in _CONTENT_NAMES]


def test_a_reader_finds_the_message_in_the_attachment() -> None:
    raw = (
        b"From: ann@example.com\r\nTo: to@x.example\r\nBcc: secret@y.example\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/mixed;\r\n boundary=b\r\n\r\n--b\r\n\r\nHello\r\n--b\r\n"
        b"Content-Type: text/html\r\n\r\n<b>x</b>\r\n--b--\r\n"
    )
    (attachment,) = parse_header(raw, Limits()).attachments
    inner = message_from_bytes(b64decode(attachment.content), policy=policy.default)
    assert [part.get_content_type() for part in inner.walk()] == ["multipart/mixed", "text/plain", "text/html"]
    assert inner["bcc"] is None


def test_without_a_body_there_is_an_empty_one() -> None:
    message = parse_header(b"From: ann@example.com\r\nSubject: x", Limits())
    assert (message.subject, b64decode(message.attachments[0].content)) == ("x", b"\r\n")


def test_what_is_too_large_as_an_attachment_is_refused() -> None:
    raw = b"From: ann@example.com\r\n\r\n" + b"x" * 1000
    with pytest.raises(Unusable) as caught:
        parse_header(raw, Limits(max_attachment_octets=1000))
    assert caught.value.fault is Fault.ATTACHMENTS_TOO_LARGE
    parse_header(raw, Limits(max_attachment_octets=1400))
