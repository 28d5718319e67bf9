"""What leaves is what was stored: composed mails, read again by our parser and by the standard library's."""

from __future__ import annotations

import base64
import email
import email.policy
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import encoding, transfer
from relay.delivery.compose import Unsendable
from relay.delivery.content import Held
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from relay.delivery.transfer import Base64Decoder
from relay.mail import Message, Unusable, parse
from scripts.services.ses_double import Refused, check_content
from tests.support.composing import compose

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
MESSAGES = sorted(CORPUS.glob("*/*.eml"))


def row(**columns: Any) -> OutgoingEmail:
    defaults: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "user_id": "user",
        "sender": "ann@example.com",
        "to": ("to@x.example",),
        "cc": (),
        "bcc": (),
        "reply_to": (),
        "subject": "Hello",
        "html": "",
        "text": "Hi\n",
        "headers": {},
        "attachments": (),
        "retries": 0,
        "created_at": datetime(2026, 11, 26, 12, 0, tzinfo=UTC),
    }
    return OutgoingEmail(**(defaults | columns))


def row_of(message: Message) -> OutgoingEmail:
    """The row that the relay would store, as far as it leaves."""
    return row(
        sender=message.sender,
        to=message.to,
        cc=message.cc,
        bcc=message.bcc or (() if message.to or message.cc else ("bcc@x.example",)),
        reply_to=message.reply_to,
        subject=message.subject,
        html=message.html,
        text=message.text,
        headers=message.headers,
        attachments=tuple(
            OutgoingAttachment(a.filename, a.content, None, a.content_type, a.content_id) for a in message.attachments
        ),
    )


def _outer_parts(part: Any) -> list[Any]:
    """The parts that we made: not what is inside of a message that was attached as it was."""
    if part.get_content_maintype() != "multipart":
        return [part] if part.get_content_maintype() != "message" else []
    return [part, *(inner for child in part.get_payload() for inner in _outer_parts(child))]


def lines(text: str) -> str:
    """A text whose line ends are LF, without those at its end: a transport adds one."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_was_parsed_and_composed_is_parsed_as_the_same(path: Path) -> None:
    try:
        stored = row_of(parse(path.read_bytes()))
        octets = compose(stored).octets
    except (Unusable, Unsendable):
        return
    check_content(octets)
    again = parse(octets)
    assert (again.sender, again.to, again.cc, again.reply_to) == (
        stored.sender,
        stored.to,
        stored.cc,
        stored.reply_to,
    )
    assert again.subject == " ".join(encoding.clean(stored.subject).split(" ")).strip()
    assert lines(again.html) == lines(stored.html)
    assert lines(again.text) == lines(stored.text) or not lines(stored.text)
    calendars = sum(
        (a.content_type or "").startswith("text/calendar") and b"METHOD:" in base64.b64decode(a.content or "")
        for a in stored.attachments
    )
    assert sorted(base64.b64decode(a.content) for a in again.attachments[calendars:] if calendars == 0) == sorted(
        base64.b64decode(a.content or "") for a in stored.attachments if calendars == 0
    )
    reread = email.message_from_bytes(octets, policy=email.policy.default)
    assert [defect for part in _outer_parts(reread) for defect in part.defects] == []


TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=300)


@given(TEXT, TEXT, TEXT, st.lists(st.binary(max_size=300), max_size=3), TEXT)
def test_any_row_makes_a_mail_that_ses_takes(
    subject: str, html: str, text: str, contents: list[bytes], name: str
) -> None:
    attachments = tuple(
        OutgoingAttachment(f"{name}.pdf", base64.b64encode(content).decode(), None, "application/pdf", None)
        for content in contents
    )
    stored = row(subject=subject, html=html, text=text, attachments=attachments, headers={"X-Note": subject})
    octets = compose(stored).octets
    check_content(octets)
    assert max(map(len, octets.split(b"\r\n"))) <= 998


@given(TEXT)
def test_a_text_comes_through_its_transfer_encoding(text: str) -> None:
    name, pieces = transfer.text_body(Held(text.encode()))
    octets = b"".join(pieces())
    header = f"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: {name}\r\n\r\n".encode()
    part = email.message_from_bytes(header + octets)
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert content.decode("utf-8").replace("\r\n", "\n") == text.replace("\r\n", "\n").replace("\r", "\n")
    assert max(map(len, octets.split(b"\r\n"))) <= 76


class _InPieces:
    """Content that comes in small pieces, as from a file."""

    def __init__(self, octets: bytes, size: int) -> None:
        self._octets, self._piece, self.size = octets, size, len(octets)

    def pieces(self) -> Iterator[bytes]:
        for start in range(0, self.size, self._piece):
            yield self._octets[start : start + self._piece]


@pytest.mark.parametrize(
    "unit", ["a", "a ", "aé", "漢", ".", "=", " ", "\r", "\r\n", "From x\n", "a" * 75 + "\n", "é\r\n.\n"]
)
@pytest.mark.parametrize("length", [1, 76, 58_366, 58_368, 58_369, 58_370, 150_000])
def test_a_long_text_comes_through_whole_and_in_pieces(unit: str, length: int) -> None:
    """Lengths around those at which a line without end is cut."""
    text = ("é" + unit * (length // len(unit) + 1))[:length]
    results = []
    for content in (Held(text.encode()), _InPieces(text.encode(), 997)):
        name, pieces = transfer.text_body(content)
        octets = b"".join(pieces())
        assert max(map(len, octets.split(b"\r\n"))) <= 76
        part = email.message_from_bytes(b"Content-Transfer-Encoding: %b\r\n\r\n" % name.encode() + octets)
        read = part.get_payload(decode=True)
        assert isinstance(read, bytes)
        assert read.replace(b"\r\n", b"\n").decode() == text.replace("\r\n", "\n").replace("\r", "\n")
        assert not re.search(rb"(?m)^(?:From |\.)", octets)
        results.append(name)
    assert len(set(results)) == 1


@pytest.mark.parametrize("length", [1, 60, 76, 77, 500, 997, 998, 5000])
@pytest.mark.parametrize("character", ["a", "é", "漢", " "])
def test_a_header_of_any_length_has_lines_within_the_limit(length: int, character: str) -> None:
    octets = compose(row(subject=character * length, headers={"X-Long": character * length})).octets
    check_content(octets)


def test_hidden_recipients_are_nowhere_in_the_content() -> None:
    composed = compose(row(bcc=("hidden@x.example",), headers={"Bcc": "other@x.example", "Resent-Bcc": "a@x.example"}))
    assert composed.recipients == ("to@x.example", "hidden@x.example")
    assert b"hidden" not in composed.octets
    assert b"bcc" not in composed.octets.lower()
    assert b"undisclosed" in compose(row(to=(), bcc=("hidden@x.example",))).octets


def test_fields_that_steer_a_provider_do_not_leave() -> None:
    fields = {
        "X-SES-SOURCE-ARN": "arn",
        "x-ses-message-tags": "a=b",
        "Return-Path": "<a@x.example>",
        "DKIM-Signature": "v=1",
        "Content-Type": "text/html",
        "X-Entity-ID": "another",
        "List-Id": "<list.example>",
        "list-id": "<twice.example>",
        "Sender": "else@other.example",
        "X-Evil\r\nBcc": "a@x.example",
        "X-Split": "a\r\nBcc: b@x.example",
    }
    stored = row(headers=fields)
    octets = compose(stored).octets
    check_content(octets)
    read = email.message_from_bytes(octets, policy=email.policy.default)
    assert read.get_all("X-Entity-ID") == [stored.id]
    assert read.get_all("List-Id") == ["<list.example>"]
    assert read["X-Split"] == "a Bcc: b@x.example"
    assert not {"x-ses-source-arn", "return-path", "dkim-signature", "sender", "bcc"} & {k.lower() for k in read}
    own = compose(row(headers={"Sender": "Desk <desk@example.com>"})).octets
    assert b"Sender: Desk <desk@example.com>" in own


def test_images_that_the_html_names_are_related_and_invitations_an_alternative() -> None:
    invitation = b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n"
    stored = row(
        html='<img src="cid:logo@x">',
        attachments=(
            OutgoingAttachment("l.png", base64.b64encode(b"png").decode(), None, "image/png", "logo"),
            OutgoingAttachment("logo.png", base64.b64encode(b"png").decode(), None, "image/png", "logo@x"),
            OutgoingAttachment("other.png", base64.b64encode(b"png").decode(), None, "image/png", "other@x"),
            OutgoingAttachment("i.ics", base64.b64encode(invitation).decode(), None, "text/calendar", None),
        ),
    )
    read = email.message_from_bytes(compose(stored).octets, policy=email.policy.default)
    kinds = [(part.get_content_type(), part.get_content_disposition()) for part in read.walk()]
    assert kinds == [
        ("multipart/mixed", None),
        ("multipart/related", None),
        ("multipart/alternative", None),
        ("text/plain", None),
        ("text/html", None),
        ("text/calendar", None),
        ("image/png", "inline"),
        ("image/png", "attachment"),  # its id is the beginning of the other's alone
        ("image/png", "attachment"),
        ("text/calendar", "attachment"),
    ]


def test_a_forwarded_message_is_itself_where_it_may_be() -> None:
    short = b"From: a@x.example\r\nSubject: x\r\n\r\nHi\r\n"
    for content, kind in ((short, "message/rfc822"), (b"\xff" + short, "application/octet-stream")):
        attachment = OutgoingAttachment("m.eml", base64.b64encode(content).decode(), None, "message/rfc822", None)
        octets = compose(row(attachments=(attachment,))).octets
        check_content(octets)
        assert f"Content-Type: {kind}".encode() in octets


@pytest.mark.parametrize(
    ("field", "itself"),
    [
        ('Content-Disposition: attachment; filename="a.pdf"', True),
        ('Content-Disposition: attachment; filename="a.EXE"', False),
        ("Content-Type: application/x; name=a.exe", False),
        ('Content-Type: application/x; name = "a.exe "', False),
        ("Content-Disposition: attachment; filename*0=a; filename*1=.exe", False),
        ("Content-Disposition: attachment; filename*=utf-8''a%2Eexe", False),
        ('Content-Type: application/x; name="=?utf-8?Q?a=2Eexe?="', False),
    ],
)
def test_a_forwarded_message_that_names_a_refused_file_is_a_file_itself(field: str, itself: bool) -> None:
    content = f"Subject: x\r\n{field}\r\n\r\nHi\r\n".encode()
    attachment = OutgoingAttachment("m.eml", base64.b64encode(content).decode(), None, "message/rfc822", None)
    octets = compose(row(attachments=(attachment,))).octets
    check_content(octets)
    assert (b"Content-Type: message/rfc822" in octets) is itself


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"to": tuple(f"a{n}@x.example" for n in range(51))}, "TooManyRecipients"),
        ({"to": ()}, "NoRecipients"),
        ({"attachments": (OutgoingAttachment("x.exe", "", None, None, None),)}, "RefusedExtension"),
        ({"attachments": (OutgoingAttachment("x.ExE . ", "", None, None, None),)}, "RefusedExtension"),
        ({"attachments": (OutgoingAttachment("x", "A" * 5, None, None, None),)}, "BadAttachment"),
        ({"text": "é" * 16_500_000}, "MessageTooLarge"),
    ],
)
def test_what_no_provider_takes_is_said_at_once(columns: dict[str, Any], code: str) -> None:
    with pytest.raises(Unsendable) as raised:
        compose(row(**columns))
    assert raised.value.code == code


def test_the_double_refuses_what_it_should() -> None:
    good = compose(row()).octets
    for bad in (
        good.replace(b"Subject: Hello", b"Subject: Hello\r\nSubject: Again"),
        good.replace(b"Hi", b"\xc3\xa4"),
        good.replace(b"Hi", b"x" * 999),
        good.replace(b"Hi\r\n", b"Hi\n"),
        good.replace(b"MIME-Version", b"X-SES-SOURCE-ARN: x\r\nMIME-Version"),
    ):
        with pytest.raises(Refused):
            check_content(bad)


@pytest.mark.parametrize(
    ("content", "octets"),
    [
        ("QUFBQg==", b"AAAB"),
        ("QUFBQg", b"AAAB"),
        ("QQ==QUFB", b"A"),
        ("QUE=QUFB", b"AA"),
        ("QUFB=QUFB", b"AAAAAA"),
        ("QUFB====QUFB", b"AAAAAA"),
        ("Q=UFB", b"AAA"),
        ("=Q===UFB=", b"AAA"),
        ("Q\r\nU!F\tB", b"AAA"),
        ("-_-_", b"\xfb\xff\xbf"),
        ("", b""),
        ("=", b""),
    ],
)
def test_base64_ends_at_its_padding_and_nowhere_else(content: str, octets: bytes) -> None:
    for size in range(1, len(content) + 1):
        decoder = Base64Decoder()
        pieces = [content[at : at + size].encode() for at in range(0, len(content), size)]
        assert b"".join([*map(decoder.decode, pieces), decoder.end()]) == octets, size
