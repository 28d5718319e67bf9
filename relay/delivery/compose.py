"""From a row to the octets of its mail (RFC 5322, 2045 to 2047, 2183, 2231, 2387), as SES's raw content has to be.

    mixed { related { alternative { text, html, calendar }, inline images }, attachments }

with every level left out that would have one child. All of it is 7-bit, To and Cc stand in the header, Bcc nowhere.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from email.utils import format_datetime
from hashlib import sha256
from typing import Final

from relay.core.address import domain_of
from relay.core.frozen import frozen
from relay.core.provider_limits import MAX_COMPOSED_OCTETS, MAX_RECIPIENTS, ONCE_ONLY_FIELDS, refused_extension
from relay.delivery import encoding
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from relay.mail import encoded_word

_LEFT_OUT_NAMES: Final = """
from to cc bcc reply-to subject date message-id mime-version return-path dkim-signature domainkey-signature
x-entity-id received delivered-to
"""
#: Fields of a row's headers that never leave: they are made here, steer SES, name hidden recipients, or are void.
_LEFT_OUT: Final = frozenset(_LEFT_OUT_NAMES.split())
_LEFT_OUT_PREFIXES: Final = ("content-", "x-ses-", "resent-", "arc-")
_FIELD_NAME: Final = re.compile(r"[!-9;-~]{1,126}\Z")
_ID: Final = re.compile(r"[!-;=?-~]{1,900}\Z")
_MEDIA_TYPE: Final = re.compile(r"[!#$&^_.+0-9A-Za-z-]{1,127}/[!#$&^_.+0-9A-Za-z-]{1,127}\Z")
_METHOD: Final = re.compile(rb"^METHOD:([A-Za-z]{1,20})\r?$", re.MULTILINE)
_MAILBOX: Final = re.compile(r"(?P<name>[^<>]*)<(?P<address>[^<>]+)>\s*\Z")
_BLANKS: Final = re.compile(r"\s+")


class Unsendable(Exception):
    """The row can't become a mail that a provider takes, however often it is tried. `code` is a word for the row."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@frozen
class Composed:
    """A mail ready to hand over: `recipients` are its envelope, `octets` its content with CRLF line ends."""

    sender: str
    recipients: tuple[str, ...]
    octets: bytes


@frozen
class _Part:
    """A leaf or a multipart: header fields that are ready, and the octets behind the empty line."""

    fields: bytes
    body: bytes


def compose(email: OutgoingEmail, *, html: str | None = None) -> Composed:
    """The mail of a row. `html`: stands in for the row's own, where links are tracked.

    Raises Unsendable. The same row makes the same octets.
    """
    if not email.recipients:
        raise Unsendable("NoRecipients", "the mail has no recipients")
    if len(email.recipients) > MAX_RECIPIENTS:
        raise Unsendable("TooManyRecipients", f"the mail has more than {MAX_RECIPIENTS} recipients")
    root = _root(email, email.html if html is None else html)
    end = b"" if root.body.endswith(b"\r\n") else b"\r\n"
    octets = b"".join((*_header(email), root.fields, b"\r\n", root.body, end))
    if len(octets) > MAX_COMPOSED_OCTETS:
        raise Unsendable("MessageTooLarge", "the mail is larger than 40 MB once it is encoded")
    return Composed(address_of(email.sender), email.recipients, octets)


def address_of(mailbox: str) -> str:
    """The bare address of `Name <a@b.c>` or `a@b.c`."""
    match = _MAILBOX.match(mailbox)
    return (match["address"] if match else mailbox).strip()


# The header.


def _header(email: OutgoingEmail) -> Iterator[bytes]:
    domain = domain_of(address_of(email.sender)) or "localhost"
    yield encoding.mailbox_field("From", [_mailbox(email.sender)])
    if email.reply_to:
        yield encoding.mailbox_field("Reply-To", [_mailbox(mailbox) for mailbox in email.reply_to])
    if email.to:
        yield encoding.mailbox_field("To", [_mailbox(address) for address in email.to])
    elif not email.cc:
        yield encoding.field("To", "undisclosed-recipients:;")
    if email.cc:
        yield encoding.mailbox_field("Cc", [_mailbox(address) for address in email.cc])
    yield encoding.text_field("Subject", email.subject)
    yield encoding.field("Date", format_datetime(email.created_at))
    yield encoding.field("Message-ID", f"<{email.id}@{domain}>")
    yield encoding.field("X-Entity-ID", email.id)
    yield from _further_fields(email.headers, domain)
    yield b"MIME-Version: 1.0\r\n"


def _further_fields(headers: Mapping[str, str], domain: str) -> Iterator[bytes]:
    seen: set[str] = set()
    for name, value in headers.items():
        key = name.lower()
        if key in _LEFT_OUT or key.startswith(_LEFT_OUT_PREFIXES) or not _FIELD_NAME.match(name):
            continue
        if key in ONCE_ONLY_FIELDS and key in seen:
            continue
        text = encoding.clean(value)
        # SES wants the domains of Sender and From verified alike: another one refuses the mail.
        if not text or (key == "sender" and domain_of(address_of(text)).lower() != domain.lower()):
            continue
        seen.add(key)
        if key == "sender":
            yield encoding.mailbox_field(name, [_mailbox(text)])
        else:
            yield encoding.text_field(name, text)


def _mailbox(mailbox: str) -> str:
    """A mailbox in ASCII: a display name that isn't becomes encoded words, one with specials is quoted."""
    match = _MAILBOX.match(encoding.clean(mailbox))
    if match is None:
        return encoding.clean(mailbox).encode("ascii", "ignore").decode()
    name, address = match["name"].strip(), match["address"].strip()
    address = address.encode("ascii", "ignore").decode()
    if not name:
        return address
    if not name.isascii():
        inner = name[1:-1] if name.startswith('"') and name.endswith('"') and len(name) > 1 else name
        name = encoded_word.encode_whole(inner)
    return f"{name} <{address}>"


# The body.


def _root(email: OutgoingEmail, html: str) -> _Part:
    attachments = list(email.attachments)
    for attachment in attachments:
        extension = refused_extension(attachment.filename)
        if extension is not None:
            raise Unsendable("RefusedExtension", f"attachments that end in .{extension} are refused")
    named: list[OutgoingAttachment] = []
    others: list[OutgoingAttachment] = []
    for attachment in attachments:
        (named if _is_inline(attachment, html) else others).append(attachment)
    parts = _alternatives(email.text, html, [_content(a) for a in others if _is_calendar(a)])
    boundaries = _Boundaries(email.id)
    content, root_type = parts[0], "text/html"
    if len(parts) > 1:
        content, root_type = boundaries.multipart("alternative", parts), "multipart/alternative"
    if named:
        images = [_attached(attachment, inline=True) for attachment in named]
        content = boundaries.multipart("related", [content, *images], root_type=root_type)
    if others:
        content = boundaries.multipart("mixed", [content, *(_attached(a, inline=False) for a in others)])
    return content


def _alternatives(text: str, html: str, calendars: Sequence[bytes]) -> list[_Part]:
    """What shows the same, the simplest first (RFC 2046 section 5.1.4)."""
    parts = []
    if text or not html:
        parts.append(_text_part("plain", text or "\n"))
    if html:
        parts.append(_text_part("html", html))
    for octets in calendars:
        method = _METHOD.search(octets)
        if method is not None:
            words = ["charset=utf-8", f"method={method[1].decode().upper()}"]
            fields = encoding.parameters_field("Content-Type", "text/calendar", words)
            parts.append(_Part(fields + b"Content-Transfer-Encoding: base64\r\n", encoding.base64_lines(octets)))
    return parts


def _text_part(subtype: str, text: str) -> _Part:
    name, octets = encoding.body(text)
    fields = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {name}\r\n"
    return _Part(fields.encode("ascii"), octets)


def _is_inline(attachment: OutgoingAttachment, html: str) -> bool:
    """Whether the HTML shows it: by its content id, whatever its disposition was."""
    content_id = (attachment.content_id or "").strip().strip("<>")
    # Not where it is only the beginning of another one's.
    return bool(content_id) and re.search(rf"cid:{re.escape(content_id)}(?![\w.@+-])", html) is not None


def _is_calendar(attachment: OutgoingAttachment) -> bool:
    return (attachment.content_type or "").partition(";")[0].strip().lower() == "text/calendar"


def _attached(attachment: OutgoingAttachment, *, inline: bool) -> _Part:
    octets = _content(attachment)
    filename = encoding.clean(attachment.filename)
    media_type, more = _type_of(attachment)
    transfer, content = "base64", b""
    if media_type.startswith("message/"):
        if _is_short_7bit(octets):
            transfer, content = "7bit", octets
        else:  # RFC 2046 section 5.2.1 allows it no other encoding
            if media_type == "message/rfc822" and not filename.lower().endswith(".eml"):
                filename = f"{filename or 'message'}.eml"
            media_type, more = "application/octet-stream", []
    if transfer == "base64":
        content = encoding.base64_lines(octets)
    names = [encoding.encoded_name(filename)] if filename else []
    fields = encoding.parameters_field("Content-Type", media_type, [*more, *names])
    fields += f"Content-Transfer-Encoding: {transfer}\r\n".encode("ascii")
    disposition = "inline" if inline else "attachment"
    fields += encoding.parameters_field(
        "Content-Disposition", disposition, encoding.parameter("filename", filename) if filename else []
    )
    content_id = _BLANKS.sub("", attachment.content_id or "").strip("<>")
    if content_id and _ID.match(content_id):
        fields += encoding.field("Content-ID", f"<{content_id}>")
    return _Part(fields, content)


def _type_of(attachment: OutgoingAttachment) -> tuple[str, list[str]]:
    """The media type, and those of its parameters that are kept: a charset of text, a calendar's method."""
    value, _, rest = (attachment.content_type or "").partition(";")
    media_type = value.strip().lower()
    if not _MEDIA_TYPE.match(media_type) or media_type.startswith("multipart/"):
        return "application/octet-stream", []
    kept = []
    for piece in rest.split(";"):
        name, _, content = piece.partition("=")
        content = content.strip().strip('"')
        if name.strip().lower() in ("charset", "method") and re.fullmatch(r"[A-Za-z0-9_.:+-]{1,40}", content):
            kept.append(f"{name.strip().lower()}={content}")
    return media_type, kept


def _content(attachment: OutgoingAttachment) -> bytes:
    """The octets. Raises Unsendable for what is no Base64, and where there is none."""
    if attachment.content is None:
        raise Unsendable("BadAttachment", "an attachment has neither content nor path")
    try:
        return binascii.a2b_base64(attachment.content)
    except binascii.Error:
        raise Unsendable("BadAttachment", "an attachment's content is not Base64") from None


def _is_short_7bit(octets: bytes) -> bool:
    """Whether these lines may stand in a mail as they are."""
    lines = octets.split(b"\r\n")
    return octets.isascii() and all(
        len(line) <= 998 and b"\r" not in line and b"\n" not in line and b"\x00" not in line for line in lines
    )


class _Boundaries:
    """Makes the multiparts of one mail. A boundary is of no text: it is derived from the id, by one for each level."""

    def __init__(self, email_id: str) -> None:
        self._email_id = email_id
        self._count = 0

    def multipart(self, subtype: str, parts: Sequence[_Part], *, root_type: str = "") -> _Part:
        """A multipart of these. `root_type`: the media type of the first part of a related (RFC 2387).

        The line end before a delimiter belongs to the delimiter: a part keeps its own.
        """
        self._count += 1
        # `=_` is in neither Base64 nor quoted-printable.
        boundary = f"=_{sha256(f'{self._email_id} {self._count}'.encode()).hexdigest()[:32]}"
        delimiter = f"--{boundary}\r\n".encode("ascii")
        pieces = [piece for part in parts for piece in (delimiter, part.fields, b"\r\n", part.body, b"\r\n")]
        words = [f'boundary="{boundary}"', *([f'type="{root_type}"'] if root_type else [])]
        fields = encoding.parameters_field("Content-Type", f"multipart/{subtype}", words)
        return _Part(fields, b"".join((*pieces, f"--{boundary}--\r\n".encode("ascii"))))
