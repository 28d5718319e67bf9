"""Parameters, encoded words and file names: text that a row can hold, and the same after being written."""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.mail import encoded_word, filename, parameters

TOKENS = (
    b"=?utf-8?q?",
    b"=?utf-8?B?",
    b"=?iso-2022-jp?b?",
    b"=?utf-16?b?",
    b"=?utf-7?q?",
    b"?=",
    b"name=",
    b"filename*=",
    b"filename*0*=",
    b"*1=",
    b"utf-8''",
    b"boundary=",
    b"%00",
    b"=00",
    b"=0A",
    b'\\"',
    b"\xed\xa0\x80",
    b"+AAA-",
    b"\x1b$B",
)
MAX_OCTETS = 512
_WORD = re.compile(r"=\?utf-8\?[QB]\?[!-~]*\?=")


def seeds() -> Iterator[bytes]:
    """Inputs to begin with."""
    yield from (
        b"text/plain; charset=utf-8",
        b'text/plain; charset="utf-8"; format=flowed; delsp=yes',
        b"application/pdf; filename*=utf-8''%e2%82%ac%20rates; filename=\"EURO rates\"",
        b"attachment; filename*0*=iso-8859-1'de'%E4; filename*1=\"b\"; filename*2*=%00",
        b"multipart/mixed boundary=cut name=x;; (comment (nested)) type=y",
        b"=?utf-8?q?=C3=A4_=00?= =?utf-8?b?w6Q=?= =?iso-8859-1*de?Q?=E4?=",
        b"=?iso-2022-jp?b?GyRCJDMbKEI=?=",
        b"=?utf-16?b?/v8AZA==?= =?utf-7?q?+2D0-?=",
        b"../../etc/passwd",
        b"..\\a\xe2\x80\xae.exe",
        "ä".encode() * 60 + b" =?x",
    )


def check(octets: bytes) -> None:
    """Raises AssertionError where something can't be stored, or says something else when it is read again."""
    view = octets.decode("latin-1")
    text = encoded_word.decode(view)
    _check_text(text)
    _check_encoded(text)
    found = parameters.parse(view)
    assert found.value == found.value.lower()
    assert found.texts.keys() == found.views.keys()
    for name, value in found.texts.items():
        assert name == name.lower()
        _check_text(value)
        found.views[name].encode("latin-1")
        _check_name(value)
    _check_name(text)
    _check_written(view)


def _check_text(text: str) -> None:
    """What Postgres can hold."""
    assert "\0" not in text
    text.encode("utf-8")


def _check_encoded(text: str) -> None:
    line = re.sub(r"[\r\n]+", " ", text)
    for encode in (encoded_word.encode, encoded_word.encode_whole):
        written = encode(line)
        assert all(" " <= character <= "~" for character in written), written
        assert all(len(word) <= 75 for word in _WORD.findall(written))
        assert encoded_word.decode(written) == line, (line, written)


def _check_name(text: str) -> None:
    name = filename.clean(text)
    assert len(name) <= filename.MAX_LENGTH
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069/\\]", name)
    assert name not in (".", "..")
    # Where it had to be cut, a blank may be the last.
    assert name == name.strip() or len(name) == filename.MAX_LENGTH
    assert filename.clean(name) == name.strip()
    given = filename.for_message(text)
    assert given.endswith(".eml")
    assert filename.clean(given) == given.strip()


def _check_written(view: str) -> None:
    """A value that was quoted as RFC 2045 has it is read as it was.

    But where an octet above 127 stands before an escaped quote and that before a semicolon: there the backslash may be
    the second octet of a character, and the quote the end.
    """
    value = re.sub(r"[\r\n]", "", view)
    if re.search(r'[\x80-\xff]"[ \t]*(?:;|\Z)', value):
        return
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    found = parameters.parse(f'text/plain; x="{quoted}"; y=z')
    assert found.value == "text/plain"
    assert found.views == {"x": value, "y": "z"}
