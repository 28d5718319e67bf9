"""Octets to text: the declared charset, then UTF-8, then windows-1252 (labels and supersets as in the WHATWG Encoding
Standard).
"""

from __future__ import annotations

import codecs
import encodings
import pkgutil
import re
from encodings.aliases import aliases

from relay.core.memo import memoised

#: Labels that Python doesn't know or takes more narrowly than mail programs do; None: says nothing about the octets.
_LABELS: dict[str, str | None] = {
    label: name
    for name, labels in (
        (None, "ascii us-ascii usascii ansi_x3.4-1968 iso646-us 646 7bit 8bit binary default unknown"),
        (None, "unknown-8bit x-unknown"),
        (None, "none utf-8 utf8 unicode-1-1-utf-8 utf-8mb4"),
        ("cp1252", "iso-8859-1 iso8859-1 iso88591 iso_8859-1 latin1 latin-1 l1 cp819"),
        ("gb18030", "gb2312 gb_2312-80 gbk x-gbk cp936 ms936 windows-936 euc-cn chinese csgb2312"),
        ("cp949", "euc-kr euc_kr euckr ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 korean uhc windows-949 ms949"),
        ("cp932", "shift_jis shift-jis sjis x-sjis ms_kanji windows-31j ms932 cswindows31j"),
        ("iso2022_jp", "iso-2022-jp csiso2022jp iso2022jp jis iso-2022-jp-ms cp50220 cp50221 cp50222"),
        ("euc_jp", "x-euc-jp x-euc eucjp cseucpkdfmtjapanese cp51932"),
        ("big5hkscs", "big5 big-5 cn-big5 x-x-big5 csbig5 big5-hkscs"),
        ("cp1254", "iso-8859-9 iso8859-9 latin5 l5"),
        ("cp874", "iso-8859-11 iso8859-11 tis-620 tis620 windows-874 dos-874 x-windows-874"),
        ("iso8859-8", "iso-8859-8-i iso-8859-8-e logical visual"),
        ("iso8859-6", "iso-8859-6-i iso-8859-6-e"),
        ("koi8-u", "koi8-ru"),
        ("koi8-r", "koi koi8 koi8_r"),
        ("mac-roman", "macintosh mac x-mac-roman macroman"),
        ("mac-cyrillic", "x-mac-cyrillic"),
        ("mac-latin2", "x-mac-ce"),
        ("utf-7", "unicode-1-1-utf-7 x-unicode-2-0-utf-7"),
        ("utf-16", "unicode ucs-2 iso-10646-ucs-2"),
    )
    for label in labels.split(" ")
}
#: What Python may be asked for by its own name: text encodings only (no rot13, zip, punycode, unicode_escape).
_TEXT_CODECS = re.compile(
    r"utf-(?:7|8|8-sig|16|16-le|16-be|32|32-le|32-be)|cp\d{3,5}|iso8859-\d{1,2}|iso2022_[a-z0-9_]+|koi8-[rtu]|mac-[a-z0-9]+|"
    r"big5|big5hkscs|euc_[a-z0-9]+|euc_kr|gb18030|gbk|gb2312|hz|johab|shift_jis[a-z0-9_]*|shift_jisx0213|"
    r"tis-620|ptcp154|kz1048|hp-roman8|palmos"
)
#: All names that Python has for encodings. It is asked for no other: it looks for a module of each name that it is
#: given, and keeps each of them for ever, known or not, so that a client's labels would fill the memory.
_PYTHON_NAMES = frozenset((*aliases, *(module.name for module in pkgutil.iter_modules(encodings.__path__))))
_ESCAPED = re.compile("[\udc80-\udcff]+")
_NON_ASCII = bytes(range(0x80, 0x100))
_WINDOWS_1252 = [bytes([octet]).decode("cp1252", "ignore") or chr(octet) for octet in range(256)]
_SURROGATES = re.compile("[\ud800-\udfff]")
#: Octets on either side of the first damage that tell whether a charset is wrong or only hurt.
_SAMPLE = 32_768
#: Changes between character sets in one text; a line of Japanese has two.
_MAX_ESCAPES = 100_000
_JIS_ESCAPE = re.compile(rb"\x1b(\([BJHI]|\$[@B]|\$\(D)")


@memoised(entries=512, octets=150)
def codec(label: str) -> str | None:
    """Python's name of the charset that a label stands for; None for UTF-8, ASCII, nothing, and what nobody knows."""
    label = label.strip(" \t'\"").lower()
    if label in _LABELS:
        return _LABELS[label]
    if match := re.fullmatch(r"(?:x-)?(?:cp|win|windows|ibm|ansi)[-_ ]?(\d{3,5})", label):
        label = f"cp{int(match[1])}"
    if len(label) > 40 or not label.isascii():
        return None
    label = encodings.normalize_encoding(label).replace(".", "_").lower()
    if label not in _PYTHON_NAMES:
        return None
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return None
    if name in _LABELS:
        return _LABELS[name]
    return name if _TEXT_CODECS.fullmatch(name) else None


def is_ascii_superset(label: str) -> bool:
    """Whether an octet below 128 always stands for itself or is part of an escape, so that CR and LF can be found as
    octets.
    """
    return not label or not (codec(label) or "").startswith(("utf-16", "utf-32"))


def decode(octets: bytes, label: str = "") -> str:
    """The text that `octets` are in the charset `label`; UTF-8 and then windows-1252 where they aren't. Never raises.

    A text that is the declared charset but for a few octets keeps it, and those octets are read as windows-1252. NUL
    and lone
    surrogates are dropped (Postgres has no place for them), and nothing else is.
    """
    declared = codec(label) if label else None
    text = _decode(octets, declared)
    if "\0" in text:
        text = text.replace("\0", "")
    if declared is not None and not text.isascii():
        text = _SURROGATES.sub("", text)
    return text


def decode_view(view: str, label: str = "") -> str:
    """`decode` for a latin-1 view of octets, as header values are."""
    if view.isascii() and not label:
        return view.replace("\0", "") if "\0" in view else view
    return decode(view.encode("latin-1"), label)


def _decode(octets: bytes, declared: str | None) -> str:
    if declared is not None:
        try:
            return octets.decode(declared)
        except (UnicodeError, ValueError):
            pass
        if declared == "iso2022_jp":
            try:
                return _decode_jis(octets)
            except UnicodeError:
                pass
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if b"\xed" in octets:
        # UTF-8 made from UTF-16 character by character (CESU-8): pairs are put together, lone halves dropped.
        try:
            halves = octets.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
            return halves.decode("utf-16-le", "ignore")
        except UnicodeError:
            pass
    if declared == "cp1252" or _mostly_damaged(octets, declared or "utf-8"):
        return _decode_windows_1252(octets)
    try:
        text = octets.decode(declared or "utf-8", "surrogateescape")
    except (UnicodeError, ValueError):
        return _decode_windows_1252(octets)
    return _ESCAPED.sub(lambda match: "".join(_WINDOWS_1252[ord(each) & 0xFF] for each in match[0]), text)


def _mostly_damaged(octets: bytes, name: str) -> bool:
    """Whether a text that isn't quite in that charset isn't in it at all, judged by the surroundings of its first
    damage.
    """
    try:
        octets.decode(name)
    except UnicodeDecodeError as error:
        sample = octets[max(0, error.start - _SAMPLE) : error.start + _SAMPLE]
    except (UnicodeError, ValueError):
        return True
    else:
        return False
    try:
        text = sample.decode(name, "surrogateescape")
    except (UnicodeError, ValueError):
        return True
    damaged = len(text) - len(_ESCAPED.sub("", text))
    return damaged * 10 > len(sample) - len(sample.translate(None, _NON_ASCII))


def _decode_windows_1252(octets: bytes) -> str:
    """With the five octets that mean nothing as C1 controls, as browsers have it."""
    try:
        return octets.decode("cp1252")
    except UnicodeDecodeError:
        return octets.decode("latin-1").translate(dict(enumerate(_WINDOWS_1252)))


def _decode_jis(octets: bytes) -> str:
    """ISO-2022-JP as Japanese mail programs write it: with half-width katakana and the vendors' rows (NEC, IBM) of
    cp932.

    Raises UnicodeError where it isn't that.
    """
    if octets.count(b"\x1b") > _MAX_ESCAPES:
        raise UnicodeError("more escapes than text")
    text = []
    mode, position = b"(B", 0
    for match in [*_JIS_ESCAPE.finditer(octets), None]:
        run = octets[position : match.start() if match else len(octets)]
        if mode in (b"$@", b"$B"):
            text.append("".join(_jis_line(line) for line in re.split(rb"(\r?\n)", run)))
        elif mode == b"(I":
            text.append(bytes(octet | 0x80 if 0x21 <= octet <= 0x5F else octet for octet in run).decode("cp932"))
        elif mode == b"$(D":
            raise UnicodeError("JIS X 0212")
        else:
            text.append(run.decode("ascii"))
        if match:
            mode, position = match[1], match.end()
    return "".join(text)


def _jis_line(line: bytes) -> str:
    if line in (b"\r\n", b"\n"):
        return line.decode("ascii")
    shifted = bytearray()
    for row, cell in zip(line[::2], line[1::2], strict=False):
        if not (0x21 <= row <= 0x7E and 0x21 <= cell <= 0x7E):
            raise UnicodeError("not in JIS X 0208")
        lead = (row + 1) // 2 + (0x70 if row < 0x5F else 0xB0)
        trail = cell + (0x1F if cell < 0x60 else 0x20) if row % 2 else cell + 0x7E
        shifted += bytes((lead, trail))
    return shifted.decode("cp932")
