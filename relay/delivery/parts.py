"""The body of a mail as a tree of parts (RFC 2045, 2046, 2183, 2231, 2387), written piece by piece.

    mixed { related { alternative { text, html, calendar }, inline images }, attachments }

with every level left out that would have one child.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from html import unescape
from typing import Final
from urllib.parse import unquote_to_bytes

from relay.core.frozen import frozen
from relay.core.provider_limits import refused_extension
from relay.delivery import encoding, transfer
from relay.delivery.content import Content, Encoded, Held, octets_of
from relay.delivery.row import OutgoingAttachment

_ID: Final = re.compile(r"[!-;=?-~]{1,900}\Z")
_MEDIA_TYPE: Final = re.compile(r"[!#$&^_.+0-9A-Za-z-]{1,127}/[!#$&^_.+0-9A-Za-z-]{1,127}\Z")
_METHOD: Final = re.compile(rb"^METHOD:([A-Za-z]{1,20})\r?$", re.MULTILINE | re.IGNORECASE)
_BLANKS: Final = re.compile(r"\s+")
#: A larger calendar is no invitation that a mail program would show.
_MAX_INVITATION: Final = 1_000_000
#: A content id as HTML names it (RFC 2392), and what may follow one in a style or a list of sources.
_CID: Final = re.compile(rb"cid:([^\s\"'<>()\\]{1,1000})", re.IGNORECASE)
_BEHIND_ID: Final = re.compile(rb"[,;&?#]")
_LONGEST_CID: Final = 1100
#: File names in a message that is attached as it is.
_NAMES: Final = re.compile(rb"name[*0-9]{0,8}[ \t]{0,8}=[ \t]{0,8}(\"[^\"\r\n]{0,900}|[^\s;\"]{0,900})", re.IGNORECASE)


@frozen
class Enclosure:
    """An attachment whose content is at hand. Its `content` and `path` of the row are of no more meaning."""

    about: OutgoingAttachment
    content: Content


@frozen
class Bodies:
    """What a mail carries: text and HTML as UTF-8, and the decoded attachments."""

    text: Content
    html: Content
    enclosures: Sequence[Enclosure]


@frozen
class Part:
    """A leaf or a multipart: header fields that are ready, and the octets behind the empty line."""

    fields: bytes
    pieces: Callable[[], Iterator[bytes]]


def root_of(email_id: str, bodies: Bodies, html: Content, *, invitation: bool = True) -> Part:
    """The whole body. `html`: what leaves in place of that of `bodies`. `invitation`: whether a calendar with an
    invitation is shown as the text is, beside being attached. Raises NoRoom.
    """
    named, others = _by_place(bodies)
    calendar = next(filter(None, map(_invitation, others)), None) if invitation else None
    parts = _alternatives(bodies.text, html, calendar)
    boundaries = _Boundaries(email_id)
    content, root_type = parts[0], "text/html"
    if len(parts) > 1:
        content, root_type = boundaries.multipart("alternative", parts), "multipart/alternative"
    if named:
        images = [_attached(enclosure, inline=True) for enclosure in named]
        content = boundaries.multipart("related", [content, *images], root_type=root_type)
    if others:
        content = boundaries.multipart("mixed", [content, *(_attached(each, inline=False) for each in others)])
    return content


def _by_place(bodies: Bodies) -> tuple[list[Enclosure], list[Enclosure]]:
    """Those that the HTML shows, by their content id, whatever their disposition was; and the others."""
    ids = {_content_id(enclosure.about).encode("utf-8", "replace") for enclosure in bodies.enclosures} - {b""}
    found = _named_ids(bodies.html, ids) if ids else set()
    named: list[Enclosure] = []
    others: list[Enclosure] = []
    for enclosure in bodies.enclosures:
        content_id = _content_id(enclosure.about).encode("utf-8", "replace")
        (named if content_id in found else others).append(enclosure)
    return named, others


def _content_id(attachment: OutgoingAttachment) -> str:
    return _BLANKS.sub("", attachment.content_id or "").strip("<>")


def _named_ids(html: Content, ids: set[bytes]) -> set[bytes]:
    """Which of these content ids the HTML names."""
    found: set[bytes] = set()
    read = 0
    tail = b""
    for piece in html.pieces():
        read += len(piece)
        window = tail + piece
        for match in _CID.finditer(window):
            if match.end() < len(window) or read == html.size:
                found.update(ids & _spellings(match[1]))
        tail = window[-_LONGEST_CID:]
    return found


def _spellings(reference: bytes) -> set[bytes]:
    """The ids that such a reference may name."""
    spellings = {reference, _BEHIND_ID.split(reference, maxsplit=1)[0]}
    if b"&" in reference:
        spellings.add(unescape(reference.decode("utf-8", "replace")).encode("utf-8", "replace"))
    if b"%" in reference:
        spellings |= {unquote_to_bytes(spelling) for spelling in spellings}
    return spellings


def _alternatives(text: Content, html: Content, invitation: Part | None) -> list[Part]:
    """What shows the same, the simplest first (RFC 2046 section 5.1.4)."""
    parts = []
    has_html = html.size > 0
    if text.size or not has_html:
        parts.append(_text_part("plain", text if text.size else Held(b"\n")))
    if has_html:
        parts.append(_text_part("html", html))
    if invitation is not None:
        parts.append(invitation)
    return parts


def _text_part(subtype: str, text: Content) -> Part:
    name, pieces = transfer.text_body(text)
    fields = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {name}\r\n"
    return Part(fields.encode("ascii"), pieces)


def _invitation(enclosure: Enclosure) -> Part | None:
    """A calendar with a method (RFC 6047 section 2.4) as an alternative; None for anything else."""
    if (enclosure.about.content_type or "").partition(";")[0].strip().lower() != "text/calendar":
        return None
    if enclosure.content.size > _MAX_INVITATION:
        return None
    octets = octets_of(enclosure.content)
    method = _METHOD.search(octets)
    if method is None:
        return None
    words = ["charset=utf-8", f"method={method[1].decode().upper()}"]
    fields = encoding.parameters_field("Content-Type", "text/calendar", words)
    fields += b"Content-Transfer-Encoding: base64\r\n"
    return Part(fields, lambda: transfer.base64_lines([octets]))


def _attached(enclosure: Enclosure, *, inline: bool) -> Part:
    content = enclosure.content
    filename = encoding.clean(enclosure.about.filename)
    media_type, more = _type_of(enclosure.about)
    name = "base64"
    if media_type.startswith("message/"):
        if isinstance(content, Encoded):
            content = Held(octets_of(content))
        if transfer.is_short_7bit(content.pieces()) and not _names_refused(content):
            name = "7bit"
        else:  # RFC 2046 section 5.2.1 allows it no other encoding
            if media_type == "message/rfc822" and not filename.lower().endswith(".eml"):
                filename = f"{filename or 'message'}.eml"
            media_type, more = "application/octet-stream", []
    parameters = [*more, *([encoding.encoded_name(filename)] if filename else [])]
    fields = encoding.parameters_field("Content-Type", media_type, parameters)
    fields += f"Content-Transfer-Encoding: {name}\r\n".encode("ascii")
    disposition = "inline" if inline else "attachment"
    fields += encoding.parameters_field(
        "Content-Disposition", disposition, encoding.parameter("filename", filename) if filename else []
    )
    content_id = _content_id(enclosure.about)
    if _ID.match(content_id):
        fields += encoding.field("Content-ID", f"<{content_id}>")
    return Part(fields, content.pieces if name == "7bit" else lambda: transfer.base64_body(content))


def _names_refused(content: Content) -> bool:
    """Whether a message names files that the provider refuses, or in a way that isn't looked into here."""
    tail = b""
    for piece in content.pieces():
        window = tail + piece
        for match in _NAMES.finditer(window):
            name = match[1].strip(b'"').decode("latin-1")
            if "=?" in name or "%" in name or refused_extension(name) is not None:
                return True
        tail = window[-1000:]
    return False


def _type_of(attachment: OutgoingAttachment) -> tuple[str, list[str]]:
    """The media type, and those of its parameters that are kept: a charset of text, a calendar's method."""
    value, _, rest = (attachment.content_type or "").partition(";")
    media_type = value.strip().lower()
    if not _MEDIA_TYPE.match(media_type) or media_type.startswith("multipart/"):
        return "application/octet-stream", []
    kept: dict[str, str] = {}
    for piece in rest.split(";"):
        name, _, content = piece.partition("=")
        name, content = name.strip().lower(), content.strip().strip('"')
        if name in ("charset", "method") and re.fullmatch(r"[A-Za-z0-9_.:+-]{1,40}", content):
            kept.setdefault(name, f"{name}={content}")
    return media_type, list(kept.values())


class _Boundaries:
    """Makes the multiparts of one mail. A boundary is of no text: it is derived from the id, by one for each level."""

    def __init__(self, email_id: str) -> None:
        self._email_id = email_id
        self._count = 0

    def multipart(self, subtype: str, parts: Sequence[Part], *, root_type: str = "") -> Part:
        """A multipart of these. `root_type`: the media type of the first part of a related (RFC 2387).

        The line end before a delimiter belongs to the delimiter: a part keeps its own.
        """
        self._count += 1
        # `=_` is in neither Base64 nor quoted-printable.
        boundary = f"=_{sha256(f'{self._email_id} {self._count}'.encode()).hexdigest()[:32]}"
        words = [f'boundary="{boundary}"', *([f'type="{root_type}"'] if root_type else [])]
        fields = encoding.parameters_field("Content-Type", f"multipart/{subtype}", words)
        return Part(fields, lambda: _joined(boundary.encode("ascii"), parts))


def _joined(boundary: bytes, parts: Iterable[Part]) -> Iterator[bytes]:
    for part in parts:
        yield b"--%b\r\n%b\r\n" % (boundary, part.fields)
        yield from part.pieces()
        yield b"\r\n"
    yield b"--%b--\r\n" % boundary
