"""Writes relay/mail/charset_labels.py: which of Python's codecs each registered charset label stands for.

The labels are those of the WHATWG Encoding Standard (section 4.2) and of IANA's registry of character sets, as they
stand in tests/unit/mail/charset_registries.json; a test holds the module to that list. Run it from the top of the
repository after a change of the list: `python -m scripts.charset_labels`.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch charset_labels instead.")

import argparse
import codecs
import json
from pathlib import Path
from typing import Final

_REGISTRIES: Final = Path("tests/unit/mail/charset_registries.json")
_MODULE: Final = Path("relay/mail/charset_labels.py")

#: Encodings of the standard whose name Python knows under another name, takes more narrowly, or has not. An empty name
#: stands for UTF-8, or for a charset that says nothing about octets above 127.
_CODECS: Final = {
    "utf-8": "",
    "replacement": "",
    "x-user-defined": "",
    "iso-8859-8-i": "iso8859-8",
    "macintosh": "mac-roman",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac-cyrillic",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    # A byte order mark decides.
    "utf-16le": "utf-16",
}
#: Labels for which mail needs another reading than a browser: ASCII says nothing about octets above 127, and the
#: escapes of ISO-2022-KR and HZ are no danger where nothing is executed.
_IN_MAIL: Final = {
    "ascii": "",
    "us-ascii": "",
    "ansi_x3.4-1968": "",
    "csiso2022kr": "iso2022_kr",
    "iso-2022-kr": "iso2022_kr",
    "hz-gb-2312": "hz",
    "unicodefeff": "utf-16-le",
    "utf-16le": "utf-16-le",
}
#: Names of IANA's that neither the standard nor Python knows.
_IANA_CODECS: Final = {
    "us-ascii": "",
    "unknown-8bit": "",
    "utf-8": "",
    "cesu-8": "",
    "jis_encoding": "iso2022_jp",
    "gb_2312-80": "gb18030",
    "iso_8859-6-e": "iso8859-6",
    "iso_8859-6-i": "iso8859-6",
    "iso_8859-8-e": "iso8859-8",
    "iso_8859-8-i": "iso8859-8",
    "iso-10646-ucs-2": "utf-16",
    "iso-10646-ucs-4": "utf-32",
    "unicode-1-1-utf-7": "utf-7",
    "iso-8859-1-windows-3.0-latin-1": "cp1252",
    "iso-8859-1-windows-3.1-latin-1": "cp1252",
    "iso-8859-2-windows-latin-2": "cp1250",
    "iso-8859-9-windows-latin-5": "cp1254",
    "windows-31j": "cp932",
    "big5-hkscs": "big5hkscs",
    "cp51932": "euc_jp",
    "cp50220": "iso2022_jp",
    "ibm00858": "cp858",
    "ibm01140": "cp1140",
    "extended_unix_code_packed_format_for_japanese": "euc_jp",
    "kz-1048": "kz1048",
}


def labels() -> dict[str, str]:
    """Every label, in lower case, and the name of its codec; an empty one says nothing about the octets."""
    registries = json.loads(_REGISTRIES.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for encoding, spellings in registries["whatwg"].items():
        codec = _CODECS[encoding] if encoding in _CODECS else codecs.lookup(encoding).name
        for label in spellings:
            found[label] = _IN_MAIL.get(label, codec)
    for charset, aliases in registries["iana"].items():
        spellings = [spelling.lower() for spelling in (charset, *aliases)]
        known = next((found[spelling] for spelling in spellings if spelling in found), None)
        codec = _IANA_CODECS.get(spellings[0], known or "")
        if not codec and known is None and spellings[0] not in _IANA_CODECS:
            codec = codecs.lookup(next(filter(_is_known, spellings))).name
        for label in spellings:
            found.setdefault(label, codec)
    return found


def _is_known(label: str) -> bool:
    try:
        codecs.lookup(label)
    except LookupError:
        return False
    return True


def module() -> str:
    """The text of the module."""
    by_codec: dict[str, list[str]] = {}
    for label, codec in labels().items():
        by_codec.setdefault(codec, []).append(label)
    lines = []
    for codec in sorted(by_codec):
        lines.append(f"        (\n            {json.dumps(codec)},")
        row = ""
        for label in sorted(by_codec[codec]):
            if len(row) + len(label) > 96:
                lines.append(f'            "{row} "')
                row = ""
            row += (" " if row else "") + label
        lines.append(f'            "{row}",\n        ),')
    rows = "\n".join(lines)
    return f'''"""Charset labels of the WHATWG Encoding Standard and of IANA's registry, and Python's codec for each.

Made by `python -m scripts.charset_labels` of the list in tests/unit/mail/charset_registries.json; not edited by hand.
"""

from __future__ import annotations

from typing import Final

#: By label, in lower case; an empty codec is UTF-8, or says nothing about octets above 127.
CODECS: Final[dict[str, str]] = {{
    label: codec
    for codec, labels in (
{rows}
    )
    for label in labels.split(" ")
}}
'''


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m scripts.charset_labels", description=__doc__).parse_args()
    _MODULE.write_text(module(), encoding="utf-8")
