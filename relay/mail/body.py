"""From the tree of parts to what is stored: the text, the HTML, and the attachments."""

from __future__ import annotations

from relay.core.frozen import frozen
from relay.core.records import StoredAttachment
from relay.mail import charset, encoded_word, filename, flowed, header_block, transfer_encoding
from relay.mail.message import Fault, Limits, Unusable
from relay.mail.part import Part

_MESSAGE_TYPES = frozenset(("message/rfc822", "message/global", "message/news"))
#: Octets of an encoded message that are decoded to find its subject.
_HEAD_OCTETS = 65_536


@frozen
class Content:
    """What a message says and carries. `text` and `html` have LF line ends."""

    text: str
    html: str
    attachments: tuple[StoredAttachment, ...]


def read(raw: bytes, root: Part, limits: Limits) -> Content:
    """The content of the message whose parts are `root`. Raises Unusable where the attachments are too large
    together."""
    collector = _Collector(raw, limits)
    text: list[str] = []
    html: list[str] = []
    collector.read(root, text, html, is_root=True)
    return Content("\n".join(text), "<br/>\n".join(html), tuple(collector.attachments))


class _Collector:
    """One walk over one tree."""

    def __init__(self, raw: bytes, limits: Limits) -> None:
        self._raw = raw
        self._left = limits.max_attachment_octets
        self.attachments: list[StoredAttachment] = []

    def read(self, part: Part, text: list[str], html: list[str], *, is_root: bool = False) -> None:
        """Puts what is in `part` and below on the lists: the bodies on `text` and `html`, the rest on that of
        attachments.
        """
        about = part.about
        if not part.children:
            # The only part of a message is what it says, even if it has a name.
            if about.is_shown and (is_root or not about.filename):
                body = self._text(part)
                if body:
                    (html if about.content_type.value == "text/html" else text).append(body)
            else:
                self._attach(part)
        elif about.content_type.value == "multipart/alternative":
            chosen_text: list[str] = []
            chosen_html: list[str] = []
            for child in part.children:
                below_text: list[str] = []
                below_html: list[str] = []
                self.read(child, below_text, below_html)
                if below_text:
                    chosen_text = _later(chosen_text, below_text)
                if below_html:
                    chosen_html = _later(chosen_html, below_html)
            text += chosen_text
            html += chosen_html
        else:
            for child in part.children:
                self.read(child, text, html)

    def _text(self, part: Part) -> str:
        about = part.about
        encoding, label = about.encoding, about.charset_label
        octets = self._raw[part.body : part.end]
        # Before decoding it is cheaper; where a character may be a CR and an LF side by side it would be wrong.
        beforehand = about.has_ascii_lines and encoding in ("", "quoted-printable")
        if beforehand:
            octets = transfer_encoding.lf_lines(octets)
        text = charset.decode(transfer_encoding.decode(octets, encoding), label)
        if "\r" in text and (encoding or not beforehand):
            text = text.replace("\r\n", "\n")
        texts = about.content_type.texts
        if "format" in texts and part.media_type == "text/plain" and texts["format"].strip().lower() == "flowed":
            return flowed.join(text, delete_space=texts.get("delsp", "").strip().lower() == "yes")
        return text

    def _attach(self, part: Part) -> None:
        about = part.about
        encoding = about.encoding
        size = part.end - part.body
        # Base64 loses its line ends, at most one in four octets; anything else grows, and quoted-printable shrinks to a
        # third before.
        least = size // 3 if encoding == "base64" else transfer_encoding.encoded_size(0 if encoding else size)
        if least > self._left:
            raise Unusable(Fault.ATTACHMENTS_TOO_LARGE, "attachments are too large")
        content = transfer_encoding.to_base64(self._raw, part.body, part.end, encoding)
        self._left -= len(content)
        if self._left < 0:
            raise Unusable(Fault.ATTACHMENTS_TOO_LARGE, "attachments are too large")
        content_id = about.content_id
        self.attachments.append(
            StoredAttachment(
                filename=about.filename or self._unnamed(part, encoding, content_id),
                content=content,
                content_type=about.stored_type,
                content_id=content_id,
            )
        )

    def _unnamed(self, part: Part, encoding: str, content_id: str | None) -> str:
        if part.media_type in _MESSAGE_TYPES:
            return filename.for_message(self._subject(part, encoding))
        name = ""
        if encoding == "uuencode":
            octets = self._raw[part.body : min(part.end, part.body + _HEAD_OCTETS)]
            name = filename.clean(charset.decode_view(transfer_encoding.uuencoded_name(octets)))
        return name or filename.clean(content_id or "") or filename.for_type(part.media_type)

    def _subject(self, part: Part, encoding: str) -> str:
        if not encoding:
            head, _ = header_block.read(self._raw, part.body, part.end)
        else:
            octets = transfer_encoding.decode(self._raw[part.body : min(part.end, part.body + _HEAD_OCTETS)], encoding)
            head, _ = header_block.read(octets, 0, len(octets))
        return encoded_word.decode(head.first("subject"))


def _later(earlier: list[str], later: list[str]) -> list[str]:
    """Of two alternatives the later one, unless it is blank and the earlier one isn't."""
    return later if not earlier or not all(map(str.isspace, later)) else earlier
