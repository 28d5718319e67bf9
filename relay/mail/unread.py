"""A message of which the header alone is read: for one whose body took more time than any message may have.

Nothing is lost of it: its body becomes an attachment, together with those header fields that say how to read it. The
other fields are not in there: Bcc and what is meant for the relay alone must not reach any recipient.
"""

from __future__ import annotations

from binascii import b2a_base64
from dataclasses import replace
from typing import Final

from relay.core.records import StoredAttachment
from relay.mail import transfer_encoding
from relay.mail.message import Fault, Limits, Message, Unusable
from relay.mail.reader import parse

#: What stands in place of the text.
NOTE: Final = "The relay could not read this message in the time that a message may take. It is attached as it came.\n"
#: `Message.parser` of such a message.
UNREAD: Final = "unread"
_FILENAME: Final = "message.eml"
_MEDIA_TYPE: Final = "message/rfc822"
_BLANKS: Final = b" \t"


def parse_header(raw: bytes, limits: Limits, reverse_path: str = "") -> Message:
    """As `relay.mail.parse`, for the header; raises Unusable for the same reasons."""
    header, body = _divided(raw)
    envelope, content = _sorted(header)
    message = parse(b"".join(envelope) + b"\r\n", limits, reverse_path)
    attached = b"".join(content) + b"\r\n" + body
    if transfer_encoding.encoded_size(len(attached)) > limits.max_attachment_octets:
        raise Unusable(Fault.ATTACHMENTS_TOO_LARGE, "attachments are too large")
    attachment = StoredAttachment(
        filename=_FILENAME, content=b2a_base64(attached, newline=False).decode("ascii"), content_type=_MEDIA_TYPE
    )
    return replace(message, text=NOTE, html="", attachments=(attachment,), parser=UNREAD)


def _divided(raw: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the header, each with its end, and what is behind the empty line."""
    lines = []
    position = 0
    while position < len(raw):
        end = raw.find(b"\n", position) + 1 or len(raw)
        line = raw[position:end]
        position = end
        if line in (b"\r\n", b"\n"):
            break
        lines.append(line)
    return lines, raw[position:]


def _sorted(header: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The lines of fields about the message, and of those about its body (RFC 2045 section 3)."""
    envelope: list[bytes] = []
    content: list[bytes] = []
    chosen = envelope
    for line in header:
        if line[:1] not in _BLANKS:
            name = line[:100].partition(b":")[0].strip().lower()
            chosen = content if name.startswith(b"content-") or name == b"mime-version" else envelope
        chosen.append(line)
    return envelope, content
