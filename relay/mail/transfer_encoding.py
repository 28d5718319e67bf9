"""Content-Transfer-Encoding (RFC 2045 section 6): the octets of a part's body, and the Base64 that is stored of it."""

from __future__ import annotations

import re
from binascii import Error, a2b_base64, a2b_qp, a2b_uu, b2a_base64

from relay.core.memo import memoised

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_FOREIGN = bytes(set(range(256)) - set(_ALPHABET) - {0x3D})
#: Marks what isn't Base64, so that one pass both cleans and checks.
_MARK_FOREIGN = bytes(0x21 if octet in _FOREIGN else octet for octet in range(256))
_LINE_ENDS = b"\r\n"
#: Octets of Base64 that are cleaned at a time, about: what a step needs besides the result. glibc takes what is over
#: 128 KB from the kernel and gives it back at once: that costs a mail of 230 KB 0.15 ms. Of a mail that has more than
#: _MANY octets, it is what we want.
_STEP = 100_000
_LONG_STEP = 250_000
_MANY = 1_000_000
#: Octets of a line, its end included, whose end is cut out by its place: a shorter one isn't worth it.
_MIN_WIDTH = 16
_MAX_WIDTH = 1024

#: Characters of a Content-Transfer-Encoding that are looked at.
_MAX_VALUE = 200
_COMMENT = re.compile(r"\([^()]*\)")
_TOKEN = re.compile(r"[^\s;,\"'()]+")
_BLANKS_AT_LINE_END = re.compile(rb"(?<![ \t])[ \t]++(?=\r?\n|\Z)")
_BAD_ESCAPE = re.compile(rb"=(?![0-9A-Fa-f]{2}|\r?\n|\Z)")
#: No repetition gives back what it took: the blanks before a name and the name itself share characters.
_UU_BEGIN = re.compile(rb"^begin(-base64)?[ \t]++[0-7]{3,4}+[ \t]*+([^\n]{0,1000}+)\n", re.MULTILINE)
#: The last line of what `begin-base64` opens (POSIX uuencode).
_UU_BASE64_END = re.compile(rb"^====", re.MULTILINE)

_UUENCODE = frozenset(("x-uuencode", "uuencode", "x-uue", "uue", "x-uu"))


@memoised(entries=256, octets=150)
def name(value: str) -> str:
    """The encoding that a Content-Transfer-Encoding value names: `base64`, `quoted-printable`, `uuencode`, or empty for
    none.

    Comments, blanks, quotes and parameters around the name are ignored.
    """
    value = value[:_MAX_VALUE]
    while (without := _COMMENT.sub(" ", value)) != value:
        # Comments stand in comments.
        value = without
    match = _TOKEN.search(value.lower())
    token = match[0] if match else ""
    if token in ("base64", "quoted-printable"):
        return token
    return "uuencode" if token in _UUENCODE else ""


def decode(octets: bytes, encoding: str) -> bytes:
    """The octets that were encoded. Never raises: what is damaged is read as far as it can be."""
    if encoding == "quoted-printable":
        return decode_quoted_printable(octets)
    if encoding == "base64":
        return decode_base64(octets)
    if encoding == "uuencode":
        return decode_uuencode(octets)
    return octets


def decode_base64(octets: bytes) -> bytes:
    """Base64 to octets. Foreign octets are dropped, decoding starts again after padding, and a lone last character is
    dropped.
    """
    try:
        return a2b_base64(octets.translate(None, _LINE_ENDS), strict_mode=True)
    except Error:
        pass
    decoded = []
    for run in octets.translate(None, _FOREIGN).split(b"="):
        if run:
            usable = run[: len(run) - 1] if len(run) % 4 == 1 else run
            decoded.append(a2b_base64(usable + b"=" * (-len(usable) % 4)))
    return b"".join(decoded)


def decode_quoted_printable(octets: bytes) -> bytes:
    """Quoted-printable to octets. Escapes that aren't any stay as they stand; blanks at line ends are no part of the
    text.
    """
    has_cr = b"\r" in octets
    if b" \n" in octets or b"\t" in octets or octets.endswith(b" ") or (has_cr and b" \r\n" in octets):
        octets = _BLANKS_AT_LINE_END.sub(b"", octets)
    if has_cr and octets.count(b"=\r") != octets.count(b"=\r\n"):
        octets = _BAD_ESCAPE.sub(b"=3D", octets)
    decoded = a2b_qp(octets)
    # A search for two octets takes longer than decoding. What is left of `==` is a `=`.
    if b"=" in decoded and b"==" in octets:
        return a2b_qp(_BAD_ESCAPE.sub(b"=3D", octets))
    return decoded


def lf_lines(octets: bytes) -> bytes:
    """`octets` with LF for each CRLF.

    A search for one octet runs at the speed of memory, one for two doesn't: where each line end is CRLF, which is
    tried, it takes a quarter of the time of replacing the pairs.
    """
    if b"\r" not in octets:
        return octets
    lines = octets.replace(b"\r", b"")
    return lines if lines.replace(b"\n", b"\r\n") == octets else octets.replace(b"\r\n", b"\n")


def decode_q(octets: bytes) -> bytes:
    """The Q encoding of RFC 2047 section 4.2 to octets: like quoted-printable, but `_` is a space."""
    if b"==" in octets:
        octets = _BAD_ESCAPE.sub(b"=3D", octets)
    return a2b_qp(octets, header=True)


def decode_uuencode(octets: bytes) -> bytes:
    """The first file of uuencoded text, or of the Base64 that POSIX uuencode writes too; what is neither stays as it
    is.
    """
    begin = _UU_BEGIN.search(octets)
    if begin is None:
        return octets
    if begin[1]:
        end = _UU_BASE64_END.search(octets, begin.end())
        return decode_base64(octets[begin.end() : end.start() if end else len(octets)])
    decoded = []
    position = begin.end()
    while position < len(octets):
        stop = octets.find(b"\n", position) + 1 or len(octets)
        line = octets[position:stop].rstrip(b"\r\n")
        position = stop
        if line.rstrip(b" ") == b"end":
            break
        if not line:
            continue
        size = (line[0] - 32) & 63
        # Lines lose their trailing blanks on the way, or carry one character too many.
        try:
            decoded.append(a2b_uu(line[: 1 + (size * 4 + 2) // 3]))
        except Error:
            decoded.append(line)
    return b"".join(decoded)


def uuencoded_name(octets: bytes) -> str:
    """The file name in the first `begin` line, as a latin-1 view; empty where there is none."""
    begin = _UU_BEGIN.search(octets)
    return begin[2].decode("latin-1").strip(" \t\r") if begin else ""


def encoded_size(size: int) -> int:
    """How many octets of Base64, without line breaks, `size` octets make."""
    return (size + 2) // 3 * 4


def to_base64(raw: bytes, start: int, end: int, encoding: str) -> str:
    """The Base64, without line breaks, of the octets that `raw[start:end]` carry in that encoding.

    Where the part is Base64 already, that very Base64 is kept: it is neither decoded nor encoded, and cleaned in steps,
    so that little more than the result is needed.
    """
    if encoding == "base64":
        kept = _keep_base64(raw, start, end)
        if kept is not None:
            return kept
    return b2a_base64(decode(raw[start:end], encoding), newline=False).decode("ascii")


def _keep_base64(raw: bytes, start: int, end: int) -> str | None:
    """Sound Base64 without its line breaks; None where it holds anything else or padding before its end."""
    pieces: list[str] = []
    step = _LONG_STEP if end - start > _MANY else _STEP
    rest = _cut_lines(raw, start, end, step=step, pieces=pieces)
    size = sum(map(len, pieces))
    padding = b""
    for position in range(rest, end, step):
        piece = raw[position : min(position + step, end)].translate(_MARK_FOREIGN, _LINE_ENDS)
        if b"!" in piece:
            return None
        if padding or b"=" in piece:
            content = b"" if padding else piece.rstrip(b"=")
            padding += piece[len(content) :]
            if b"=" in content or padding.strip(b"="):
                return None
        size += len(piece)
        pieces.append(piece.decode("ascii"))
    if len(padding) > 2 or size % 4 == 1 or (padding and size % 4):
        return None
    if size % 4:
        pieces.append("=" * (-size % 4))
    return pieces[0] if len(pieces) == 1 else "".join(pieces)


def _cut_lines(raw: bytes, start: int, end: int, *, step: int, pieces: list[str]) -> int:
    """Adds lines of Base64 that are as long as the first and end with CRLF, without their ends and padding; the offset
    where the rest begins.

    To look at each octet and to cut out the ends at known places takes 0.55 ns an octet, to copy all but line ends
    0.65. The last line, which is shorter or padded, isn't tried, and neither is what follows a line of another length.
    """
    width = raw.find(b"\r\n", start, min(end, start + _MAX_WIDTH)) + 2 - start
    if width < _MIN_WIDTH:
        return start
    stop = start + ((end - start) // width - 1) * width
    step -= step % width
    while start < stop:
        octets = raw[start : min(start + step, stop)]
        # As many line ends as there are lines, and nothing else that isn't Base64: where none is left after the cut,
        # nothing but line ends was cut out.
        if octets.translate(None, _ALPHABET) != _LINE_ENDS * (len(octets) // width):
            break
        lines = bytearray(octets)
        del lines[width - 2 :: width]
        del lines[width - 2 :: width - 1]
        if b"\n" in lines or b"\r" in lines:
            break
        pieces.append(lines.decode("ascii"))
        start += len(octets)
    return start
