"""Rows of any content leave as mails that three parsers read as the row: ours, the standard library's and flanker's.

The rows are generated, with what REST may have stored: line ends, NULs and other controls, long words, characters of
every plane, lines that begin with dots or `From `, names and fields twice.
"""

from __future__ import annotations

import base64
import email
import email.policy
import re
from email.message import EmailMessage
from typing import Any

import pytest
from flanker import mime
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.core import provider_limits
from relay.delivery import encoding
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from relay.mail import parse
from scripts.services.ses_double import check_content
from tests.support.composing import compose
from tests.unit.delivery.test_compose import _outer_parts, lines, row

#: What programs on the way, parsers and headers stumble over.
HOSTILE = st.sampled_from(
    (
        "\r\n",
        "\n",
        "\r",
        "\0",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\u202e",
        "\U0001f600",
        "e\u0301",
        "漢字",
        " ",
        "\t",
        "  \n",
        ".",
        "\n.\n",
        "\nFrom me\n",
        "From x",
        "=",
        "=20",
        "=?utf-8?Q?=41?=",
        "=?",
        "?=",
        '"',
        "\\",
        "<",
        ">",
        ";",
        ",",
        ":",
        "%41",
        "''",
        "*0*",
        "\r\nBcc: x@y.example\r\n",
        "\r\n\r\n--x",
        "a" * 80,
        "b" * 1100,
        "é" * 400,
    )
)
CHARACTERS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=40)
TEXT = st.lists(st.one_of(HOSTILE, CHARACTERS), max_size=8).map("".join)
NAME = st.lists(st.one_of(HOSTILE, CHARACTERS), max_size=3).map(lambda pieces: "".join(pieces)[:255])
#: Addresses as stored, and as they leave.
ADDR_SPECS = {
    "ann@example.com": "ann@example.com",
    '"a b"@example.com': '"a b"@example.com',
    "x+y=z@sub.example.com": "x+y=z@sub.example.com",
    "a@bücher.example": "a@xn--bcher-kva.example",
}
ADDRESS = st.sampled_from(sorted(ADDR_SPECS))
MAILBOX = st.one_of(ADDRESS, st.tuples(NAME, ADDRESS).map(lambda pair: f"{pair[0]} <{pair[1]}>"))
FIELD = st.sampled_from(
    (
        "X-Note",
        "x-note",
        "X-NOTE",
        "List-Id",
        "list-id",
        "Subject",
        "Bcc",
        "X-SES-Anything",
        "Content-Type",
        "References",
        "Sender",
        "Keywords",
        "X-Priority",
        "bad name",
        "X-Entity-ID",
        "resent-to",
        "Received",
        "In-Reply-To",
        "",
    )
)


def attachment(name: str, content: bytes, media_type: str | None = None) -> OutgoingAttachment:
    encoded = base64.b64encode(content).decode()
    return OutgoingAttachment(filename=name, content=encoded, path=None, content_type=media_type, content_id=None)


MEDIA_TYPE = st.one_of(
    st.none(),
    st.sampled_from(
        (
            "application/pdf",
            "text/plain",
            "TEXT/HTML; charset=utf-8",
            "text/calendar; method=REQUEST",
            "message/rfc822",
            "multipart/mixed; boundary=x",
            "image/png; name=x",
            "application/octet-stream",
            "message/delivery-status",
        )
    ),
    NAME,
)
ATTACHMENT = st.builds(
    lambda name, content, media_type, content_id: OutgoingAttachment(
        filename=f"{name}.dat",
        content=base64.b64encode(content).decode(),
        path=None,
        content_type=media_type,
        content_id=content_id,
    ),
    NAME,
    st.one_of(st.binary(max_size=200), TEXT.map(str.encode)),
    MEDIA_TYPE,
    st.one_of(st.none(), st.sampled_from(("logo", "<logo@x>", "a b", "ü")), NAME),
)
ROW = st.builds(
    row,
    sender=MAILBOX,
    to=st.lists(MAILBOX, min_size=1, max_size=3).map(tuple),
    cc=st.lists(MAILBOX, max_size=2).map(tuple),
    bcc=st.lists(ADDRESS.map(lambda address: f"hidden.{address.lstrip(chr(34))}"), max_size=0).map(tuple),
    reply_to=st.lists(MAILBOX, max_size=2).map(tuple),
    subject=TEXT.map(lambda text: text[:1024]),
    html=st.one_of(st.just(""), TEXT, TEXT.map(lambda text: f'<p>{text}<img src="cid:logo"><img src=cid:logo@x>')),
    text=TEXT,
    headers=st.dictionaries(FIELD, TEXT, max_size=6),
    attachments=st.lists(ATTACHMENT, max_size=4).map(tuple),
)
#: What no header can hold, and what all readers take for one blank.
BLANKS = re.compile(r"\s+")


def plain(text: str) -> str:
    """A header's text as far as folding may change it."""
    return BLANKS.sub(" ", encoding.clean(text)).strip()


def unmarked(text: str) -> str:
    """A subject without byte order marks before it, which the reader leaves out."""
    return plain(plain(text).lstrip("\ufeff "))


def shown(text: str) -> str:
    """A body as all readers have it: line ends at its end are the transport's, and NULs are no part of it."""
    return lines(text.replace("\0", ""))


def contents(stored: OutgoingEmail) -> list[bytes]:
    return sorted(base64.b64decode(attachment.content or "") for attachment in stored.attachments)


def invitations(stored: OutgoingEmail, read: EmailMessage) -> int:
    """How many parts are second copies of calendars."""
    kinds = [part.get_content_disposition() for part in read.walk() if part.get_content_type() == "text/calendar"]
    return kinds.count(None)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(ROW)
@example(row(text="", html=""))
@example(row(attachments=tuple(attachment(f"{number}.pdf", b"%d" % number) for number in range(200))))
@example(row(attachments=(attachment("=?utf-8?Q?=41?=.dat", b""), attachment("''.dat", b""))))
@example(row(text=".\n..\nFrom x\n", html="é" * 10 + "\n.\nFrom x\n", subject="x" * 1024))
@example(row(attachments=(attachment("é" * 255, b""), attachment("a" * 255, b"\r\n"))))
@example(row(text="\n", html="", subject="", headers={"X-A": ""}))
def test_any_row_is_read_as_itself(stored: OutgoingEmail) -> None:
    octets = compose(stored).octets
    check_content(octets)
    with pytest.MonkeyPatch.context() as exact:
        # So that a small row is estimated as a large one is: the way in refuses by that what would not leave.
        exact.setattr(provider_limits, "_SURELY_SMALL", 0)
        exact.setattr(
            provider_limits, "_OTHER_OCTETS", 5_000 + 20 * len(str((stored.headers, stored.sender, stored.to)))
        )
        base64_characters = sum(len(attachment.content or "") for attachment in stored.attachments)
        names = [attachment.filename for attachment in stored.attachments]
        assert len(octets) <= provider_limits.composed_octets((stored.html, stored.text), base64_characters, names)
    if not _has_messages(stored):  # those are attached as they are
        assert not re.search(rb"(?m)^(?:From |\.)", octets), "a line that programs on the way change"
    read = email.message_from_bytes(octets, policy=email.policy.default)
    assert [defect for part in _outer_parts(read) for defect in part.defects] == []
    _by_the_standard_library(stored, read)
    _by_flanker(stored, octets)
    _by_ours(stored, octets, read)


def _by_the_standard_library(stored: OutgoingEmail, read: EmailMessage) -> None:
    fields = [name.lower() for name in read.keys()]  # noqa: SIM118 - fields, of which some stand twice
    assert len(fields) == len(set(fields)), "no field stands twice"
    assert not {"bcc", "resent-to", "received", "x-ses-anything"} & set(fields)
    assert plain(read["Subject"]) == plain(stored.subject)
    assert read["X-Entity-ID"] == stored.id
    for name, mailboxes in (
        ("From", [stored.sender]),
        ("To", stored.to),
        ("Cc", stored.cc),
        ("Reply-To", stored.reply_to),
    ):
        assert [address.addr_spec for address in (read[name].addresses if read[name] else ())] == [
            ADDR_SPECS.get(bare := mailbox.rpartition("<")[2].strip("> "), bare) for mailbox in mailboxes
        ]
    notes = [value for name, value in stored.headers.items() if name.lower() == "x-note" and encoding.clean(value)]
    assert (read["X-Note"] is None) == (not notes)
    if notes and "=?" not in notes[0] and max(map(len, notes[0].split())) < 900:
        assert plain(read["X-Note"]) == plain(notes[0])
    leaves = [part for part in _outer_parts(read) if part.get_content_maintype() != "multipart"]
    texts = [part for part in leaves if part.get_content_disposition() is None and part.get_filename() is None]
    for kind, wanted in (("text/html", stored.html), ("text/plain", stored.text)):
        found = [part for part in texts if part.get_content_type() == kind]
        assert len(found) == bool(wanted or (kind == "text/plain" and not stored.html))
        for part in found:
            assert shown(part.get_content()) == shown(wanted)
    attached = [part for part in read.walk() if part.get_content_disposition() is not None]
    top = attached[: len(stored.attachments)] if not _has_messages(stored) else None
    if top is not None:
        assert sorted(part.get_payload(decode=True) for part in top) == contents(stored)
        assert sorted(plain(part.get_filename() or "") for part in top) == sorted(
            plain(attachment.filename) for attachment in stored.attachments
        )


def _has_messages(stored: OutgoingEmail) -> bool:
    return any(
        (attachment.content_type or "").strip().lower().startswith("message/") for attachment in stored.attachments
    )


def _by_flanker(stored: OutgoingEmail, octets: bytes) -> None:
    if _has_messages(stored):
        return
    read = mime.from_string(octets)
    leaves = [part for part in read.walk(with_self=True) if not part.content_type.is_multipart()]
    found = [part for part in leaves if part.content_disposition[0] not in ("attachment", "inline")]
    bodies: dict[str, str] = {}
    for part in found:
        bodies.setdefault(str(part.content_type), part.body if isinstance(part.body, str) else "")
    # It makes U+00A0 a reference in HTML.
    assert shown(bodies.get("text/plain", "")).strip("\n") == shown(stored.text).strip("\n") or not stored.text.strip()
    assert shown(bodies.get("text/html", "")).replace("&nbsp;", "\xa0") == shown(stored.html).replace("&nbsp;", "\xa0")


def _by_ours(stored: OutgoingEmail, octets: bytes, read: EmailMessage) -> None:
    again: Any = parse(octets)
    assert unmarked(again.subject) == unmarked(stored.subject)
    # It takes nothing for a body that is blank.
    assert shown(again.html) == shown(stored.html) or not shown(stored.html).strip()
    assert shown(again.text) == shown(stored.text) or not shown(stored.text).strip()
    if not invitations(stored, read):
        assert sorted(base64.b64decode(attachment.content) for attachment in again.attachments) == contents(stored)


@pytest.mark.parametrize("filename", ["0*0.dat", "100%25.txt", "o'clock.txt", "a*=b.txt"])
def test_a_file_name_is_read_whole_whatever_rfc_2231_makes_of_its_characters(filename: str) -> None:
    (written,) = encoding.parameter("filename", filename)
    part = email.message_from_string(f"Content-Disposition: attachment; {written}\n\n", policy=email.policy.default)
    assert part.get_filename() == filename
