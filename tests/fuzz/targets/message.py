"""Whole messages: refused for a reason, or turned into a row that can be stored and sent, by every way the same."""

from __future__ import annotations

import base64
import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from relay.core.address import comparison_form
from relay.core.records import EmailRow
from relay.core.spellings import spellings
from relay.mail import Limits, Message, Unusable
from relay.mail.reader import parse
from relay.postgres import insert_emails
from tests.fuzz.stream import Script

TOKENS = (
    b"\r\n",
    b"\r\n\r\n",
    b"--cut\r\n",
    b"--cut--\r\n",
    b"Content-Type: ",
    b"multipart/mixed; boundary=cut",
    b"multipart/alternative; boundary=",
    b"message/rfc822",
    b"text/html",
    b"text/plain; charset=",
    b"utf-16",
    b"iso-2022-jp",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Content-Transfer-Encoding: quoted-printable\r\n",
    b"Content-Disposition: attachment; filename=",
    b"Content-ID: <",
    b"From: a@b.example\r\n",
    b"To: ",
    b"Bcc: ",
    b"Reply-To: ",
    b"Subject: ",
    b"Idempotency-Key: ",
    b"X-OpenSend-Tag: ",
    b"=?utf-8?q?",
    b"?=",
    b"=00",
    b"begin 644 x\r\n",
    b"\x1b$B",
    b"\xed\xa0\x80",
    b"\r\n ",
)
MAX_OCTETS = 4096
#: CPU seconds for one reading of at most MAX_OCTETS; it takes a few milliseconds.
_MOST_SECONDS = 2.0

_PRINTABLE = re.compile(r"[ -~]+\Z")
_NAME = re.compile(r"[!-9;-~]{1,126}\Z")
_CORPUS = Path(__file__).resolve().parents[2] / "corpus"


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: the corpus of messages, as far as they are short."""
    for path in sorted(_CORPUS.glob("*/*.eml")):
        raw = path.read_bytes()
        if len(raw) < MAX_OCTETS:
            yield b"\x00" + raw
    yield b"\x07From: a@b.example\r\nIdempotency-Key: k\r\nX-OpenSend-Tag: a=b\r\n\r\nx\r\n"


def check(octets: bytes) -> None:
    """Raises AssertionError where a message doesn't keep the promises of `relay.mail`, and whatever else it raises."""
    script = Script(octets)
    limits = _limits(script.number())
    raw = script.rest()
    began = time.process_time()
    short, long = (_outcome(raw, limits, shortcuts=shortcuts) for shortcuts in (True, False))
    assert time.process_time() - began < _MOST_SECONDS
    assert short == long
    if isinstance(short, Message):
        _check_message(short, limits)


def _limits(number: int) -> Limits:
    return Limits(
        max_parts=3 if number & 1 else 1000,
        max_part_depth=2 if number & 2 else 120,
        allow_utf8_local_parts=bool(number & 4),
        max_attachment_octets=200 if number & 8 else 1_000_000,
    )


def _outcome(raw: bytes, limits: Limits, *, shortcuts: bool) -> Message | str:
    try:
        return dataclasses.replace(parse(raw, limits, shortcuts=shortcuts), parser="")
    except Unusable as unusable:
        refused = unusable
    assert refused.detail.isascii()
    assert len(refused.detail) <= 200
    return refused.fault.value


def _check_message(message: Message, limits: Limits) -> None:
    assert message.text or message.html
    assert not set("\r\n\0") & set(message.subject)
    assert message.sender.isascii() or limits.allow_utf8_local_parts
    assert message.sender.isprintable()
    assert len(message.sender) <= 512
    # Without a name the sender is the address; with one it ends with it.
    assert message.from_addresses
    assert any(
        message.sender in (each, f"{message.sender[: -len(each) - 2]}<{each}>") for each in message.from_addresses
    )
    for addresses in (message.from_addresses, message.to, message.cc, message.bcc, message.reply_to):
        assert len({comparison_form(each) for each in addresses}) == len(addresses)
        for address in addresses:
            assert address.isprintable()
            assert address.isascii() or limits.allow_utf8_local_parts
            assert 3 <= len(address) <= 512
    assert len(message.headers) <= 14
    for name, value in message.headers.items():
        assert _NAME.match(name)
        assert _PRINTABLE.match(value)
        assert len(name) + len(value) <= 996
    assert message.idempotency_key is None or 1 <= len(message.idempotency_key) <= 256
    size = 0
    for attachment in message.attachments:
        base64.b64decode(attachment.content, validate=True)
        size += len(attachment.content)
        assert 1 <= len(attachment.filename) <= 255
        assert not re.search(r"[\x00-\x1f\x7f/\\]", attachment.filename)
        assert attachment.content_type is None or _PRINTABLE.match(attachment.content_type)
    assert size <= limits.max_attachment_octets
    _check_row(message)


def _check_row(message: Message) -> None:
    """The row says what the message says, and Postgres can hold it."""
    row = EmailRow(
        id="id",
        user_id="user",
        sender=message.sender,
        to=message.to,
        cc=message.cc,
        bcc=message.bcc,
        reply_to=message.reply_to,
        subject=message.subject,
        html=message.html,
        text=message.text,
        headers=message.headers,
        attachments=message.attachments,
        tags=message.tags,
        idempotency_key=message.idempotency_key,
    )
    payload = insert_emails.encode(row, row.recipients)
    assert "\0" not in message.html + message.text + "".join(each.filename for each in message.attachments)
    stored = orjson.loads(payload)
    assert stored["from"] == message.sender
    assert stored["subject"] == message.subject
    assert stored["html"] == message.html
    assert stored["text"] == message.text
    assert stored["headers"] == dict(message.headers)
    assert stored["guard"] == [form for mailbox in row.recipients for form in spellings(mailbox)]
    assert [each["content"] for each in stored["attachments"]] == [each.content for each in message.attachments]
