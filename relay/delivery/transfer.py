"""Transfer encodings of bodies (RFC 2045): 7bit, quoted-printable and Base64, piece by piece.

Lines end with CRLF and have 76 octets at most. Memory does not depend on the length of a body, nor of its lines.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from pybase64 import b64encode

from relay.delivery.content import SEAM, Content, Encoded, Held, Woven, octets_of

#: Octets of a line of encoded text (RFC 2045 section 6.7 and 6.8), and of any line (RFC 5322 section 2.1.1).
_LINE: Final = 76
_MAX_LINE: Final = 998
#: Octets that one line of Base64 stands for.
_GROUP: Final = 57
#: Octets of a line that are quoted at a time.
_STEP: Final = _GROUP * 1024
#: What may not stand as it is: controls, which terminals and other programs act upon.
_CONTROLS: Final = bytes({*range(0x20), 0x7F} - set(b"\t\n\r"))
#: The begin of a line that programs change on the way: SMTP doubles the one, mbox files quote the other.
_TOUCHED: Final = (b".", b"From ")
_TOUCHED_FIRST: Final = (b".", b"F")
_BLANKS: Final = (b" ", b"\t")
#: What quoted-printable leaves as it is, line ends too.
_EQUALS: Final = 0x3D
_AS_THEY_ARE: Final = bytes({*b"\t\n", *range(0x20, 0x7F)} - {_EQUALS})
#: Where an escaped line may be cut: no escaped octet is torn, and nothing that programs change begins the next line.
_PLACE: Final = rb"(?<!=)(?<!=.)(?![.F])"
#: What stands before a cut, which leaves room for `=`. Lines end with CRLF; those of 76 octets or fewer are not cut.
_CUT: Final = rb"(?:[^\r]{73}[^\r=][^\r=](?=[^\r.F][^\r])|(?=[^\r]{77})[^\r]{40,75}%b)" % _PLACE
#: A line, or the rest of one, that leaves as it is.
_WHOLE: Final = rb"[^\r]{0,76}+(?<![ \t])\r\n"
#: The last two octets before a cut after 75, as nearly all are.
_USUAL_CUT: Final = rb"[^\r=][^=](?=[^\r\n.F][^\r])"
#: What stands before, between and behind cuts. From another line on it is all but the last octet, which is missed then.
# perf: 0.20 ms for 40 KB instead of 0.25 ms, in which each line was cut by itself; and 0.1 ms with what most cuts are
# in the first place: one in a line, or in the next one.
# python -m timeit -s 'import relay.delivery.transfer as t; l = (b"a" * 95 + b"\n") * 420' 't._quoted_lines(l)'
_PIECES: Final = re.compile(
    rb"[^\r.F][^\r]{0,72}+(?:%b|\r\n(?<![ \t]\r\n)[^\r.F][^\r]{72}+%b)" % (_USUAL_CUT, _USUAL_CUT)
    + rb"|(?![.F])(?:%b|%b(?:(?![.F])%b)*(?:(?![.F])%b)?)|(?s:.+)(?=\n)" % (_CUT, _WHOLE, _WHOLE, _CUT)
)
#: Octets that are quoted at a time, to the end of a line: a repetition that may go back takes memory for each line.
_SHORT_STEP: Final = 16_384
#: The same pieces of one line. Where there is none to be had, the last is too long.
_PIECES_OF_LINE: Final = re.compile(rb"(?s)(?=.{77}).{40,75}%b|.+" % _PLACE)
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BASE64: Final = _ALPHABET + b"="
_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/=]+")
#: A whole number of lines of Base64.
_BLOCK: Final = struct.Struct(f"{_LINE}s" * 32)
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
#: Octets of a token on a line that is cut, whole lines of a token of usual length, and what takes so many off it.
_WIDTH: Final = _LINE - 1
_TOKEN_LINES: Final = 16
_LINES_OF_TOKEN: Final = tuple(struct.Struct(f"{_WIDTH}s" * count).unpack_from for count in range(_TOKEN_LINES))

Pieces = Callable[[], Iterator[bytes]]


class NotBase64(ValueError):
    """A text that no octets have as their Base64."""


def text_body(content: Content) -> tuple[str, Pieces]:
    """A text part's transfer encoding and its encoded octets: `7bit`, `quoted-printable` or `base64`.

    `content` is UTF-8, its line ends of any kind. 7bit where it may stand as it is, else the smaller one of the others.
    """
    if isinstance(content, Woven) and all(len(token) <= _LINE for token in content.tokens):
        content = Held(octets_of(content))
    if isinstance(content, Held | Woven):
        name, octets = _short_text(content.octets, content.tokens if isinstance(content, Woven) else ())
        return name, lambda: iter((octets,))
    if all(map(_SevenBit().takes, _with_lf(content.pieces()))):
        return "7bit", lambda: (piece.replace(b"\n", b"\r\n") for piece in _with_lf(content.pieces()))
    plain, odd = 0, 0
    for piece in _with_lf(content.pieces()):
        plain += len(piece)
        odd += len(piece.translate(None, _AS_THEY_ARE))
    # What is escaped has two octets more; lines that are cut take more than that.
    if _is_smaller(plain + 2 * odd, plain) and _is_smaller(sum(map(len, _quoted(_with_lf(content.pieces())))), plain):
        return "quoted-printable", lambda: _quoted(_with_lf(content.pieces()))
    return "base64", lambda: base64_lines(piece.replace(b"\n", b"\r\n") for piece in _with_lf(content.pieces()))


def _short_text(octets: bytes, tokens: Sequence[bytes]) -> tuple[str, bytes]:
    """The same for a text in memory. `tokens`: see Woven; where there are any, one is longer than a line."""
    lines = octets if b"\r" not in octets else octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if not tokens and _SevenBit().takes(lines):
        return "7bit", lines.replace(b"\n", b"\r\n")
    odd = lines.translate(None, _AS_THEY_ARE)
    size = len(lines)
    if tokens:
        odd = odd.replace(SEAM, b"")
        size += sum(map(len, tokens)) - len(tokens)
    if _is_smaller(size + 2 * len(odd), size):
        quoted = b"".join(_quoted([lines], odd))
        if tokens:
            quoted = _with_tokens(quoted, tokens)
        if _is_smaller(len(quoted), size):
            return "quoted-printable", quoted
    if tokens:
        lines = octets_of(Woven(lines, tokens))
    return "base64", b"".join(base64_lines([lines.replace(b"\n", b"\r\n")]))


def _with_tokens(quoted: bytes, tokens: Sequence[bytes]) -> bytes:
    """Quoted-printable with the tokens where the seams are, each on separate lines.

    A seam has kept room for the `=` of a soft line end.
    """
    # perf: 0.4 µs for a token of 480 octets, and 1.2 µs where it is quoted with the text:
    # python -m timeit -s 'from relay.delivery.transfer import _with_tokens; t = [b"t" * 480] * 40' \
    # -s 'q = b"\xff".join([b"text"] * 41)' '_with_tokens(q, t)'
    text, *texts = quoted.split(SEAM)
    pieces = [text]
    for token, text in zip(tokens, texts, strict=True):
        count = len(token) // _WIDTH
        if count < _TOKEN_LINES and token.find(b".") % _WIDTH:
            pieces += _LINES_OF_TOKEN[count](token)
            pieces += token[count * _WIDTH :], text
        else:
            pieces += (line.removesuffix(b"=") for line in _cut_line(token))
            pieces.append(text)
    return b"=\r\n".join(pieces)


def _is_smaller(quoted: int, plain: int) -> bool:
    """Whether so many octets of quoted-printable are no more than those of Base64."""
    return quoted * 3 <= plain * 4


class _SevenBit:
    """Whether a text, piece by piece, may stand in a mail as it is."""

    def __init__(self) -> None:
        self._open = b""

    def takes(self, lines: bytes) -> bool:
        """Whether the next octets, with LF as line ends, can be sent in this encoding."""
        lines = self._open + lines
        # perf: the lengths first: 0.03 ms for 40 KB of HTML with tracked links, and what follows 0.1 ms:
        # python -m timeit -s 'import relay.delivery.transfer as t; l = b"a line\n" * 5000' 't._SevenBit().takes(l)'
        # Of most texts that can't, the begin shows it.
        if not lines.isascii() or _longest(lines[:_SHORT_STEP]) > _LINE or _longest(lines) > _LINE:
            return False
        if len(lines.translate(None, _CONTROLS)) < len(lines) or _is_touched(lines):
            return False
        self._open = lines[lines.rfind(b"\n") + 1 :]
        return True


def _longest(lines: bytes) -> int:
    """Octets of the longest of these lines."""
    return max(map(len, lines.split(b"\n")))


def _is_touched(lines: bytes) -> bool:
    """Whether one of these lines begins as programs change it."""
    return lines.startswith(_TOUCHED) or b"\n." in lines or b"\nFrom " in lines


def _with_lf(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same text with LF as its line ends."""
    carried = b""
    for piece in pieces:
        octets = carried + piece
        carried = b""
        if octets.endswith(b"\r"):
            octets, carried = octets[:-1], b"\r"
        if octets:
            yield octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if carried:
        yield b"\n"


def _quoted(pieces: Iterable[bytes], odd: bytes | None = None) -> Iterator[bytes]:
    """Text with LF as quoted-printable with CRLF. No line begins with `.` or `From `.

    `odd`: all octets of the text that are to be escaped, where they are known.
    """
    carried = b""
    for piece in pieces:
        octets = carried + piece
        end = octets.rfind(b"\n") + 1
        if end:
            yield _quoted_lines(octets[:end], odd)
        start = end
        while len(octets) - start > _STEP:
            # A line without end is cut by a soft line end: a letter stands for what follows.
            encoded = _quoted_lines(octets[start : start + _STEP] + b"x\n", odd).removesuffix(b"x\r\n")
            yield encoded if encoded.endswith(b"=\r\n") else encoded + b"=\r\n"
            start += _STEP
        carried = octets[start:]
    if carried:
        yield _quoted_lines(carried + b"\n", odd)[:-2]


def _quoted_lines(lines: bytes, odd: bytes | None = None) -> bytes:
    """Whole lines. `odd`: see `_quoted`."""
    odd = lines.translate(None, _AS_THEY_ARE) if odd is None else odd
    for octet in (_EQUALS, *set(odd.replace(b"=", b""))):
        lines = lines.replace(b"%c" % octet, b"=%02X" % octet)
    encoded: list[bytes] = []
    start, size = 0, len(lines)
    while start < size:
        end = lines.find(b"\n", start + _SHORT_STEP) + 1 or size
        some = lines[start:end].replace(b"\n", b"\r\n")
        pieces = _PIECES.findall(some)
        cut = b"=\r\n".join(pieces)
        orderly = len(cut) == len(some) + 3 * (len(pieces) - 1)
        encoded.append(cut if orderly else _cut_lines(some))
        start = end
    return b"".join(encoded)


def _cut_lines(lines: bytes) -> bytes:
    """Escaped lines with CRLF, those among them that are not orderly too."""
    wrapped: list[bytes] = []
    for line in lines.split(b"\r\n"):
        if line[:1] not in _TOUCHED_FIRST and line[-1:] not in _BLANKS:
            if len(line) <= _LINE:
                wrapped.append(line)
                continue
            pieces = _PIECES_OF_LINE.findall(line)
            if len(pieces[-1]) <= _LINE:
                wrapped.append(b"=\r\n".join(pieces))
                continue
        wrapped += _cut_line(line)
    return b"\r\n".join(wrapped)


def _cut_line(line: bytes) -> Iterator[bytes]:
    """An escaped line, cut by soft line ends. A blank at its end is escaped, and what programs change at the begin of a
    line.
    """
    if line.endswith(_BLANKS):
        line = b"%b=%02X" % (line[:-1], line[-1])
    start, size = 0, len(line)
    while True:
        begin = b""
        if line.startswith(_TOUCHED, start):
            begin = b"=%02X" % line[start]
            start += 1
        if len(begin) + size - start <= _LINE:
            yield begin + line[start:]
            return
        end = start + _LINE - 1 - len(begin)
        # Not within an escaped octet.
        if line[end - 1] == _EQUALS:
            end -= 1
        elif line[end - 2] == _EQUALS:
            end -= 2
        yield b"%b%b=" % (begin, line[start:end])
        start = end


def base64_body(content: Content) -> Iterator[bytes]:
    """Content as Base64 in lines of 76 characters."""
    if not isinstance(content, Encoded):
        yield from base64_lines(content.pieces())
    elif content.characters:
        # perf: 0.1 ms instead of 0.7 ms for 150 KB, which would be decoded and encoded again:
        # python -m timeit -s 'from relay.delivery.transfer import _wrapped; c = b"QUJD" * 50000' '_wrapped(c)'
        yield _wrapped(content.characters)


def base64_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Base64 in lines of 76 characters."""
    carried = b""
    for piece in pieces:
        octets = carried + piece if carried else piece
        whole = len(octets) - len(octets) % _GROUP
        for start in range(0, whole, _STEP):
            yield _lines(octets[start : min(whole, start + _STEP)])
        carried = octets[whole:]
    if carried:
        yield _lines(carried)


def _lines(octets: bytes) -> bytes:
    return _wrapped(b64encode(octets))


def _wrapped(characters: bytes) -> bytes:
    # perf: 40 ns a line instead of 150, of which 100 KB have 1,800:
    # python -m timeit -s 'from relay.delivery.transfer import _wrapped; c = bytes(76 * 1024)' '_wrapped(c)'
    whole = len(characters) // _BLOCK.size * _BLOCK.size
    lines: list[bytes] = []
    for block in _BLOCK.iter_unpack(memoryview(characters)[:whole]):
        lines += block
    lines += [characters[start : start + _LINE] for start in range(whole, len(characters), _LINE)]
    lines.append(b"")
    return b"\r\n".join(lines)


def is_canonical(characters: bytes) -> bool:
    """Whether this is Base64 as it would be written here, without line ends: what it stands for has no other form."""
    if len(characters) % 4:
        return False
    padding = characters.translate(None, _ALPHABET)
    if not padding:
        return True
    if padding not in (b"=", b"==") or not characters.endswith(padding):
        return False
    # Bits that are left over are 0.
    last = characters[-4:]
    return binascii.b2a_base64(binascii.a2b_base64(last), newline=False) == last


class Base64Decoder:
    """Decodes Base64 (RFC 4648, both alphabets) that comes piece by piece.

    As programs do that made and read such rows so far: characters of no alphabet are passed over, it need not be
    padded, and where it is, it ends.
    """

    def __init__(self) -> None:
        self._carried = b""
        self._ended = False

    def decode(self, characters: bytes) -> bytes:
        """The octets that the next characters complete."""
        if self._ended:
            return b""
        # perf: what is in order, as nearly all is, takes one `translate`: 0.1 ms instead of 1 ms for 200 KB:
        # python -m timeit -s 'import relay.delivery.transfer as t; c = b"QUJD" * 50000' 't.Base64Decoder().decode(c)'
        if characters.translate(None, _BASE64):
            characters = _NOT_BASE64.sub(b"", characters.translate(_URL_SAFE))
        characters = self._carried + characters
        if b"=" in characters:
            characters = self._unpadded(characters)
        whole = len(characters) & ~3
        self._carried = characters[whole:]
        return binascii.a2b_base64(characters[:whole])

    def _unpadded(self, characters: bytes) -> bytes:
        """What comes before the padding, or all where nothing is padded: a `=` behind whole groups pads nothing."""
        runs: list[bytes] = []
        length = 0
        for run in characters.split(b"="):
            if runs and length % 4 >= 2:
                self._ended = True
                break
            runs.append(run)
            length += len(run)
        return b"".join(runs)

    def end(self) -> bytes:
        """The last octets. Raises NotBase64 where one character is left, which stands for none."""
        left, self._carried = self._carried, b""
        if len(left) == 1:
            raise NotBase64
        return binascii.a2b_base64(left + b"=" * (-len(left) % 4))


def is_short_7bit(pieces: Iterable[bytes]) -> bool:
    """Whether these lines may stand in a mail as they are: 7-bit, CRLF, 998 octets at most."""
    line = b""
    for piece in pieces:
        if not piece.isascii() or b"\x00" in piece:
            return False
        *lines, line = (line + piece).split(b"\r\n")
        if any(len(each) > _MAX_LINE or b"\r" in each or b"\n" in each for each in lines):
            return False
        if len(line) > _MAX_LINE + 1:
            return False
    return len(line) <= _MAX_LINE and b"\r" not in line and b"\n" not in line
