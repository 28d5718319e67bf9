"""What a header block says about the body below it (RFC 2045, RFC 2183)."""

from __future__ import annotations

import re
from typing import Final

from relay.core.frozen import frozen
from relay.core.memo import memoised
from relay.mail import charset, encoded_word, filename, header_block, parameters, transfer_encoding
from relay.mail.header_block import Head
from relay.mail.parameters import Parameters

#: A form of the message for mail programs that run it (AMP for Email); the recipient gets the other forms.
AMP: Final = "text/x-amp-html"

#: Octets of a block that is remembered: the few lines above a part are the same in one mail after another.
_REMEMBERED = 256

#: What is text for a reader, and what among `text/…` is for a program (an invitation, a contact, a table).
_PLAIN_TYPES = frozenset(("text/plain", "message/delivery-status"))
_FOR_PROGRAMS = frozenset(
    (
        *("text/calendar", "text/x-vcalendar", "text/vcard", "text/x-vcard", "text/directory", "text/csv"),
        *("text/comma-separated-values", "text/tab-separated-values", "text/rfc822-headers", "text/rtf"),
        AMP,
    )
)
#: Values that name half a media type.
_SHORTENED = {"html": "text/html", "multipart": "multipart/mixed", "multipart/": "multipart/mixed"}
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`{|}~0-9a-z-]{1,127}/[!#$%&'*+.^_`{|}~0-9a-z-]{1,127}\Z")
_NOT_IN_CONTENT_ID = re.compile(r"[\x00-\x20\x7f<>]")
_IN_ANGLES = re.compile(r"<([^<>]+)>")
_TOKEN = re.compile(r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]{1,100}\Z")
_NOTHING = Parameters("", texts={}, views={})

TEXT: Final = Parameters("text/plain", texts={}, views={})
MESSAGE: Final = Parameters("message/rfc822", texts={}, views={})


@frozen
class Description:
    """The Content fields of a header block, as they are meant.

    The names of media type and encoding are valid and lower case; `charset_label` is the declared one, as written.
    """

    head: Head
    content_type: Parameters
    multipart: bool
    encoding: str
    #: What a reader is shown: `plain` or `html`, `text` for a text/… of another kind; empty for what is attached.
    form: str
    #: Whether its disposition says that it is attached (RFC 2183 section 2.8: any that is unknown does).
    is_attachment: bool
    filename: str
    charset_label: str
    #: Whether line ends can be found in the octets, before the charset is applied.
    has_ascii_lines: bool

    @property
    def media_type(self) -> str:
        """`type/subtype`, lower case, valid by RFC 2045."""
        return self.content_type.value

    @property
    def has_ascii_fields(self) -> bool:
        """Whether the fields that may hold a file name are ASCII as they came."""
        return self.head.first("content-disposition").isascii() and self.head.first("content-type").isascii()

    @property
    def content_id(self) -> str | None:
        """The Content-ID without angle brackets, whole: `cid:` links name it."""
        value = self.head.first("content-id")
        if not value:
            return None
        # A library that folds lines may have put a long one into encoded words, brackets and all.
        text = encoded_word.decode(value) if "<" not in value else charset.decode_view(value)
        in_angles = _IN_ANGLES.search(text)
        return _NOT_IN_CONTENT_ID.sub("", in_angles[1] if in_angles else text) or None

    @property
    def stored_type(self) -> str:
        """The media type, with the charset where it is text and the method where it is a calendar."""
        kind = self.content_type
        parts = [kind.value]
        if kind.value.startswith("text/"):
            for name in ("charset", "method") if kind.value == "text/calendar" else ("charset",):
                value = kind.texts.get(name, "").strip("'\" ")
                if _TOKEN.match(value):
                    parts.append(f"{name}={value}")
        return "; ".join(parts)


def of(head: Head, default: Parameters = TEXT) -> Description:
    """What a header block says; `default` is the Content-Type where there is none, and text/plain an invalid one."""
    value = head.first("content-type")
    if not value:
        return assumed(head, default, typeless=default is TEXT)
    parsed = parameters.parse(value)
    if not _MEDIA_TYPE.match(parsed.value):
        kind = _SHORTENED.get(parsed.value, "text/plain")
        shown = Parameters(kind, texts=parsed.texts, views=parsed.views)
        return assumed(head, shown, typeless=parsed.value not in _SHORTENED)
    return assumed(head, parsed)


def filename_in(about: Description, label: str) -> str:
    """The file name, if its raw octets may be in the charset `label`, which another part of the message declares."""
    disposition, kind = (about.head.first(key) for key in ("content-disposition", "content-type"))
    names = (
        parameters.parse_in(disposition, label).texts.get("filename"),
        parameters.parse_in(kind, label).texts.get("name"),
    )
    return next(filter(None, (filename.clean(name or "") for name in names)), "")


def assumed(head: Head, content_type: Parameters, *, typeless: bool = False) -> Description:
    """The same with that Content-Type, whatever the block says; where the block names no type (`typeless`), a file name
    may.
    """
    kind, texts = content_type.value, content_type.texts
    if kind.startswith("multipart/"):
        # A container has no body.
        # perf: all but the first two are constants; 0.4 µs, by names 0.7 µs: python -m timeit -s "from
        # relay.mail.description import Description as D" "D(1, 2, True, '', '', False, '', '', True)"
        return Description(head, content_type, True, "", "", False, "", "", True)
    value = head.first("content-disposition")
    disposition = parameters.parse(value) if value else _NOTHING
    encoding = head.first("content-transfer-encoding")
    label = texts.get("charset", "")
    name = filename.clean(disposition.texts.get("filename", "")) or filename.clean(texts.get("name", ""))
    if typeless and name and (named := filename.media_type(name)):
        kind, content_type = named, Parameters(named, texts=texts, views=content_type.views)
    is_attachment = disposition.value not in ("", "inline")
    return Description(
        head=head,
        content_type=content_type,
        multipart=False,
        encoding=transfer_encoding.name(encoding) if encoding else "",
        form="" if is_attachment else _form(kind),
        is_attachment=is_attachment,
        filename=name,
        charset_label=label,
        has_ascii_lines=charset.is_ascii_superset(label),
    )


def _form(kind: str) -> str:
    if kind == "text/html":
        return "html"
    if kind in _PLAIN_TYPES:
        return "plain"
    return "text" if kind.startswith("text/") and kind not in _FOR_PROGRAMS else ""


def of_block(block: bytes) -> Description | None:
    """What the block above a part says, given without its last line end; None where anything about it is in doubt."""
    return _of_block_again(block) if len(block) <= _REMEMBERED else _of_block(block)


def _of_block(block: bytes) -> Description | None:
    fields = header_block.split(block)
    return None if fields is None else of(header_block.made_of(fields, clean=True))


#: What it returns must not be changed.
_of_block_again = memoised(entries=512, octets=_REMEMBERED + 64)(_of_block)
