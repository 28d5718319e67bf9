"""From the tree of parts to what is stored: the text, the HTML, and the attachments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relay.mail import charset, encodedword, filename, flowed, header, parameter, transfer
from relay.mail.message import Fault, Limits, Unusable
from relay.mail.parameter import Parameters
from relay.mail.structure import Part
from relay.records import StoredAttachment
from relay.values import frozen

_BODY_TYPES = frozenset(("text/plain", "text/html", "message/delivery-status"))
_MESSAGE_TYPES = frozenset(("message/rfc822", "message/global", "message/news"))
#: Octets of an encoded message that are decoded to find its subject.
_HEAD_OCTETS = 65_536
_MAX_CONTENT_ID = 255

_NOT_IN_CONTENT_ID = re.compile(r"[\x00-\x20\x7f<>]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]{1,100}\Z")
_NO_DISPOSITION = Parameters("", {}, {})


@frozen
class Content:
    """What a message says and carries. `text` and `html` have LF line ends."""

    text: str
    html: str
    attachments: tuple[StoredAttachment, ...]


@dataclass(slots=True)
class _Bodies:
    """The texts of some parts, in order."""

    text: list[str] = field(default_factory=list)
    html: list[str] = field(default_factory=list)


def read(raw: bytes, root: Part, limits: Limits) -> Content:
    """The content of the message whose parts are `root`. Raises Unusable where the attachments are too large
    together."""
    collector = _Collector(raw, limits)
    bodies = collector.bodies(root, is_root=True)
    return Content("\n".join(bodies.text), "<br/>\n".join(bodies.html), tuple(collector.attachments))


class _Collector:
    """One walk over one tree."""

    def __init__(self, raw: bytes, limits: Limits) -> None:
        self._raw = raw
        self._left = limits.max_attachment_octets
        self.attachments: list[StoredAttachment] = []

    def bodies(self, part: Part, *, is_root: bool = False) -> _Bodies:
        """The bodies in `part` and below, while the attachments are put on the list."""
        found = _Bodies()
        if not part.is_multipart:
            self._leaf(part, found, is_root=is_root)
            return found
        alternative = part.media_type == "multipart/alternative"
        for child in part.children:
            below = self.bodies(child)
            if alternative:
                found = _Bodies(_later(found.text, below.text), _later(found.html, below.html))
            else:
                found.text += below.text
                found.html += below.html
        return found

    def _leaf(self, part: Part, found: _Bodies, *, is_root: bool) -> None:
        value = part.head.first("content-disposition")
        disposition = parameter.parse(value) if value else _NO_DISPOSITION
        kind = part.content_type
        name = filename.clean(disposition.texts.get("filename", "")) or filename.clean(kind.texts.get("name", ""))
        # The only part of a message is what it says, even if it has a name.
        if disposition.value in ("", "inline") and kind.value in _BODY_TYPES and (is_root or not name):
            text = self._text(part)
            if text:
                (found.html if kind.value == "text/html" else found.text).append(text)
            return
        self._attach(part, name)

    def _text(self, part: Part) -> str:
        encoding = _encoding(part)
        texts = part.content_type.texts
        label = texts.get("charset", "")
        octets = self._raw[part.body : part.end]
        # Before decoding it is cheaper; where a character may be a CR and an LF side by side it would be wrong.
        beforehand = encoding in ("", "quoted-printable") and charset.is_ascii_superset(label)
        if beforehand:
            octets = octets.replace(b"\r\n", b"\n")
        text = charset.decode(transfer.decode(octets, encoding), label)
        if "\r" in text and (encoding or not beforehand):
            text = text.replace("\r\n", "\n")
        if "format" in texts and part.media_type == "text/plain" and texts["format"].strip().lower() == "flowed":
            return flowed.join(text, delete_space=texts.get("delsp", "").strip().lower() == "yes")
        return text

    def _attach(self, part: Part, name: str) -> None:
        encoding = _encoding(part)
        size = part.end - part.body
        # Base64 loses its line ends, at most one in four octets; anything else grows, and quoted-printable shrinks to a
        # third before.
        least = size // 3 if encoding == "base64" else transfer.encoded_size(0 if encoding else size)
        if least > self._left:
            raise Unusable(Fault.ATTACHMENTS_TOO_LARGE, "attachments are too large")
        content = transfer.to_base64(self._raw, part.body, part.end, encoding)
        self._left -= len(content)
        if self._left < 0:
            raise Unusable(Fault.ATTACHMENTS_TOO_LARGE, "attachments are too large")
        content_id = _content_id(part)
        self.attachments.append(
            StoredAttachment(
                filename=name or self._unnamed(part, encoding, content_id),
                content=content,
                content_type=_stored_type(part.content_type),
                content_id=content_id,
            )
        )

    def _unnamed(self, part: Part, encoding: str, content_id: str | None) -> str:
        if part.media_type in _MESSAGE_TYPES:
            return filename.for_message(self._subject(part, encoding))
        name = ""
        if encoding == "uuencode":
            octets = self._raw[part.body : min(part.end, part.body + _HEAD_OCTETS)]
            name = filename.clean(charset.decode_view(transfer.uuencoded_name(octets)))
        return name or filename.clean(content_id or "") or filename.for_type(part.media_type)

    def _subject(self, part: Part, encoding: str) -> str:
        if not encoding:
            head = header.read(self._raw, part.body, part.end)
        else:
            octets = transfer.decode(self._raw[part.body : min(part.end, part.body + _HEAD_OCTETS)], encoding)
            head = header.read(octets, 0, len(octets))
        return encodedword.decode(head.first("subject"))


def _later(earlier: list[str], later: list[str]) -> list[str]:
    """Of two alternatives the later one, unless it is blank and the earlier one isn't."""
    return later if not earlier or any(not text.isspace() for text in later) else earlier


def _encoding(part: Part) -> str:
    value = part.head.first("content-transfer-encoding")
    return transfer.name(value) if value else ""


def _content_id(part: Part) -> str | None:
    value = part.head.first("content-id")
    if not value:
        return None
    return _NOT_IN_CONTENT_ID.sub("", charset.decode_view(value))[:_MAX_CONTENT_ID] or None


def _stored_type(kind: Parameters) -> str:
    """The media type, with the charset where it is text and the method where it is a calendar."""
    parts = [kind.value]
    if kind.value.startswith("text/"):
        for name in ("charset", "method") if kind.value == "text/calendar" else ("charset",):
            value = kind.texts.get(name, "").strip("'\" ")
            if _TOKEN.match(value):
                parts.append(f"{name}={value}")
    return "; ".join(parts)
