"""What charset text of East Asia is in that declares none: Shift_JIS, GBK, Big5, EUC-JP or EUC-KR.

A character of theirs is two octets, of which the second may look like a letter, a quote or a bracket. Everything else
is not guessed.
"""

from __future__ import annotations

import re
from typing import Final

#: Octets that the detector is shown.
_SAMPLE: Final = 4096
#: Octets in which a sample is looked for.
_FAR: Final = 1_000_000
#: Two characters of two octets side by side. Text of one octet a character has hardly any: its letters above 127 stand
#: alone between others.
_PAIRS = re.compile(rb"(?:[\x81-\xfe][\x40-\x7e\x80-\xfe]){2}")
#: Words, none of whose octets ends a character's first half: what is below 40 and no digit is never a second one.
_WORDS = re.compile(rb"[0-9@-\xff]+")
#: Codecs that are answers, and those that stand for all that isn't one of them.
_ANSWERS: Final = {
    "cp932": "cp932",
    "gb18030": "gb18030",
    "big5hkscs": "big5hkscs",
    "euc_jp": "euc_jp",
    "euc_jis_2004": "euc_jp",
    "cp949": "cp949",
}
_CANDIDATES: Final = (
    *("cp932", "gb18030", "big5hkscs", "euc-jp", "cp949"),
    *("windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254", "windows-1255", "windows-1256"),
    *("koi8-r", "tis-620", "iso-8859-2", "iso-8859-5", "iso-8859-7"),
)
#: What the characters of such text are: of the scripts themselves, their punctuation and wide forms, and what their
#: standards have of other scripts.
_EXPECTED = re.compile(
    "[\x00-\x7f\u00a5\u00a7\u00a8\u00b0\u00b1\u00b4\u00b6\u00b7\u00d7\u00f7\u0391-\u0451\u2010-\u2312\u2460-\u2642"
    "\u3000-\u33ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff01-\uffe6]*\\Z"
)
#: Octets that are letters in windows-1252, which a few capitals may be, and how sure the detector has to be then.
_LATIN_LETTERS: Final = bytes(range(0xC0, 0x100))
_SURE: Final = 0.035


def detect(octets: bytes) -> str | None:
    """Python's name of the charset that `octets`, which aren't UTF-8, are in; None where they aren't of East Asia.

    What is looked at is bounded: 4 KB from the first line that holds two such characters side by side.
    """
    found = _PAIRS.search(octets, 0, _FAR)
    if found is None:
        return None
    start = max(octets.rfind(b"\n", 0, found.start()) + 1, found.start() - _SAMPLE // 2)
    sample = octets[start : start + _SAMPLE]
    if len(sample) == _SAMPLE and b"\n" in sample:
        sample = sample[: sample.rindex(b"\n")]
    # Words of ASCII say nothing, and many of them outweigh a few characters.
    sample = b" ".join(word for word in _WORDS.findall(sample) if not word.isascii())
    # It reads its tables when it is first asked, which takes a tenth of a second: few mails need it.
    import chardet  # noqa: PLC0415

    answer = chardet.detect(sample, include_encodings=_CANDIDATES, compat_names=False)
    name = _ANSWERS.get(answer["encoding"] or "")
    if name is None:
        return None
    high = sample.translate(None, bytes(range(0x80)))
    if answer["confidence"] < _SURE and not high.translate(None, _LATIN_LETTERS):
        return None
    text = sample.decode(name, "replace").rstrip("\ufffd")
    return name if _EXPECTED.match(text) else None
