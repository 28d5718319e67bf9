"""Encoded words in header values (RFC 2047), both ways."""

from __future__ import annotations

import re
from binascii import b2a_base64

from relay.mail import charset
from relay.mail.transfer_encoding import decode_base64, decode_q

#: Octets of text in one encoded word: `=?utf-8?B?` and `?=` around 60 characters stay under the 75 of RFC 2047 section
#: 2.
_OCTETS_A_WORD = 45
_START = re.compile(r"=\?([^?\s=]{1,60})\?([bBqQ])\?")
_Q_LITERAL = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!*+-/")
#: Begins where a word does, and nowhere within it: a long word would be gone through once for each of its characters.
_NON_ASCII_SPAN = re.compile(r"(?<![^ ])[^ ]*[^\x20-\x7e](?:.*[^\x20-\x7e])?[^ ]*", re.DOTALL)
_BROKEN_ESCAPE = re.compile(r"=[ \t]+(?=[0-9A-Fa-f])")


def decode(view: str) -> str:
    """The text of a header value, given as a latin-1 view of its octets.

    Adjacent words of one charset, however its label is spelled, are joined before their charset is applied; 8-bit
    octets inside a word belong to its charset, those outside are UTF-8 or else windows-1252. What isn't an encoded
    word stays as it stands. Linear in the length of `view`.
    """
    if "=?" not in view:
        return charset.decode_view(view)
    result: list[str] = []
    pending: list[tuple[str, str]] = []
    label = ""
    copied = position = 0
    while (position := view.find("=?", position)) >= 0:
        start = _START.match(view, position)
        if start is None:
            position += 2
            continue
        end = view.find("?=", start.end())
        if end < 0:
            break
        between = view[copied:position]
        word_label = start[1].partition("*")[0].lower()
        if not pending or between.strip(" \t\r\n") or not (word_label == label or _same(word_label, label)):
            result.append(_decode_words(pending, label))
            if between.strip(" \t\r\n") or not pending:
                result.append(charset.decode_view(between))
            pending, label = [], word_label
        pending.append((start[2].lower(), view[start.end() : end]))
        copied = position = end + 2
    result.append(_decode_words(pending, label))
    result.append(charset.decode_view(view[copied:]))
    return "".join(result)


def _same(label: str, other: str) -> bool:
    """Whether two labels are spellings of one charset."""
    name = charset.codec(label)
    if name is not None:
        return name == charset.codec(other)
    return label.replace("-", "").replace("_", "") == other.replace("-", "").replace("_", "")


def _decode_words(words: list[tuple[str, str]], label: str) -> str:
    """The text of adjacent words of one charset."""
    octets: list[bytes] = []
    base64 = ""
    for encoding, text in words:
        if encoding == "b":
            base64 += text
            # A word cut within a group of four goes on in the next one.
            if len(text.rstrip("=")) % 4 and not text.endswith("="):
                continue
            octets.append(decode_base64(base64.encode("latin-1")))
            base64 = ""
            continue
        if base64:
            octets.append(decode_base64(base64.encode("latin-1")))
            base64 = ""
        octets.append(decode_q(_BROKEN_ESCAPE.sub("=", text).encode("latin-1")))
    if base64:
        octets.append(decode_base64(base64.encode("latin-1")))
    return charset.decode(b"".join(octets), label)


def encode(text: str) -> str:
    """ASCII that decodes to `text`: the words from the first to the last that need it become encoded words of UTF-8.

    `text` has no line ends and no surrogates. Text that looks like an encoded word is encoded as a whole.
    """
    if "=?" in text:
        return encode_whole(text)
    match = _NON_ASCII_SPAN.search(text)
    if match is None:
        return text
    return text[: match.start()] + encode_whole(match[0]) + text[match.end() :]


def encode_whole(text: str) -> str:
    """`text` as encoded words of UTF-8 alone, each of at most 75 characters, cut between characters (RFC 2047 section
    5).
    """
    words: list[str] = []
    chunk = b""
    for character in text:
        octets = character.encode("utf-8")
        if len(chunk) + len(octets) > _OCTETS_A_WORD:
            words.append(_word(chunk))
            chunk = b""
        chunk += octets
    words.append(_word(chunk))
    return " ".join(words)


def _word(octets: bytes) -> str:
    quoted = "".join(
        chr(octet) if octet in _Q_LITERAL else "_" if octet == 0x20 else f"={octet:02X}" for octet in octets
    )
    base64 = b2a_base64(octets, newline=False).decode("ascii")
    return f"=?utf-8?Q?{quoted}?=" if len(quoted) <= len(base64) else f"=?utf-8?B?{base64}?="
