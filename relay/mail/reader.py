"""The way from raw bytes to a `Message`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final, TypeAlias

from relay.mail import body, charset, encoded_word, header_block, opensend_fields, stored_headers, structure
from relay.mail.header_block import Field, Head
from relay.mail.message import Fault, Limits, Message, Unusable
from relay.mail.people import People

DEFAULT_LIMITS: Final = Limits()

#: What SES needs of a message that is only a subject (contract section 3).
_EMPTY_BODY: Final = "\n"
#: Characters of a subject (contract section 3), and how far from its end a word is looked for where it is cut.
_MAX_SUBJECT: Final = 1024
_MAX_WORD: Final = 100
_ELLIPSIS: Final = "\u2026"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
_SPACES = re.compile(r"\s+", re.ASCII)

#: The values of one header block by lower-case name.
_Values: TypeAlias = Mapping[str, list[str]]


def parse(raw: bytes, limits: Limits = DEFAULT_LIMITS, reverse_path: str = "", *, shortcuts: bool = True) -> Message:
    """The message that `raw` means: RFC 5322, line ends CRLF or LF; a bare CR is data.

    `reverse_path`, an address in the stored form, is the sender's where From holds a name alone. Without `shortcuts`
    everything takes the long way, which must lead to the same message. Raises Unusable, and nothing else: for no From
    address, bad control headers, attachments over the limit, a local part that isn't ASCII, and more fields or
    addresses than are looked at. Damage is never a reason.
    """
    root, parser = structure.read(raw, limits, shortcuts=shortcuts)
    head = root.about.head
    # perf: one look at the block takes 0.2 µs, one at each of ten fields 1 µs: python -m timeit -s "h = b'x' * 600"
    # with h[0:600].isascii() as what is measured.
    octets = raw[root.start : root.body]
    if not octets.isascii() or b"\x1b" in octets:
        head = _legible(head, root.declared_charset)
    if head.cut:
        raise Unusable(Fault.HEADER_TOO_LARGE, "more header fields, lines or octets than are read")
    values = head.values
    people = People(values, limits.allow_utf8_local_parts, shortcuts=shortcuts)
    sender, from_addresses, reply_to = people.correspondents(reverse_path)
    to, cc, bcc = people.recipients("to"), people.recipients("cc"), people.recipients("bcc")
    idempotency_key, tags = opensend_fields.read(values)
    headers, dropped = stored_headers.select(head.fields, shortcuts=shortcuts)
    content = body.read(raw, root, limits)
    # perf: in the order of the fields 0.3 µs, by their names 0.9 µs: python -m tests.unit.test_field_order
    return Message(
        sender,
        from_addresses,
        to,
        cc,
        bcc,
        reply_to,
        _subject(values),
        content.html,
        content.text or ("" if content.html else _EMPTY_BODY),
        headers,
        content.attachments,
        _message_id(values),
        idempotency_key,
        tags,
        dropped,
        parser,
        people.left_out,
        people.header_senders(),
        content.dropped_parts,
    )


def _legible(head: Head, label: str) -> Head:
    """A header block with its values in UTF-8, whatever charset they came in; `label` is one that they may be in."""
    fields = [Field(key, name, charset.utf_8_view(view, label)) for key, name, view in head.fields]
    return header_block.made_of(fields, clean=head.clean, cut=head.cut)


def _message_id(values: _Values) -> str | None:
    if "message-id" not in values:
        return None
    text = values["message-id"][0]
    if not text.isprintable() or " " in text:
        text = _SPACES.sub("", text)
    return text or None


def _subject(values: _Values) -> str:
    if "subject" not in values:
        return ""
    text = values["subject"][0]
    if "=?" in text or not text.isascii() or "\0" in text:
        text = encoded_word.decode(text).removeprefix("\ufeff")
    if not text.isprintable():
        text = _CONTROLS.sub(" ", text)
    text = text.strip()
    return text if len(text) <= _MAX_SUBJECT else _shortened(text)


def _shortened(subject: str) -> str:
    """A subject of at most 1,024 characters, cut between words."""
    text = subject[: _MAX_SUBJECT - 1]
    if not subject[_MAX_SUBJECT - 1].isspace():
        words = text.rsplit(None, 1)
        if len(words) == 2 and len(words[1]) <= _MAX_WORD:
            text = words[0]
        else:
            # A character is not parted from the marks upon it.
            end = len(text)
            while end > 1 and unicodedata.combining(subject[end]):
                end -= 1
            text = text[:end]
    return text.rstrip() + _ELLIPSIS
