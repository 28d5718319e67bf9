"""The charset that HTML declares in itself (WHATWG HTML section 13.2.3.2, XML 1.0 section 4.3.3)."""

from __future__ import annotations

import re
from typing import Final

from relay.mail import charset, html_tokens

#: Octets of the document in which a declaration is looked for. Browsers look at 1,024, mail has longer heads.
_FAR: Final = 8192

_XML = re.compile(r"""<\?xml\s[^>]{0,200}?\bencoding\s*=\s*["']([^"'>]{1,60})["']""", re.IGNORECASE)
_IN_CONTENT = re.compile(r"charset\s*+=\s*+(?:[\"']\s*+)?([^\s\"';,>]{1,60})", re.IGNORECASE)
#: Codecs of several octets a character, whose short texts may look like UTF-8 of two.
_SEVERAL_OCTETS: Final = frozenset(("gb18030", "big5hkscs", "cp932", "cp949", "euc_jp"))
_LONG_LEADS = re.compile(rb"[\xe1-\xf4]")


def find(octets: bytes) -> str:
    """The label that the document `octets` declares; empty where it declares none, or the octets are not in that
    charset, or are UTF-8 beyond doubt.
    """
    label = _declared(octets[:_FAR].decode("latin-1"))
    name = charset.codec(label)
    if name is None or not charset.is_ascii_superset(label) or name == "utf-7":
        return ""
    if charset.is_utf_8(octets) and (name not in _SEVERAL_OCTETS or _LONG_LEADS.search(octets)):
        return ""
    try:
        octets.decode(name)
    except (UnicodeError, ValueError):
        return ""
    return label


def _declared(head: str) -> str:
    xml = _XML.match(head.lstrip("\xef\xbb\xbf \t\r\n"))
    if xml:
        return xml[1].strip()
    for token in html_tokens.Markup(head):
        if token.name == "body":
            break
        if token.name != "meta":
            continue
        label = html_tokens.attribute(token.attributes, "charset").strip()
        if label:
            return label
        if html_tokens.attribute(token.attributes, "http-equiv").strip().lower() == "content-type":
            content = _IN_CONTENT.search(html_tokens.attribute(token.attributes, "content"))
            if content:
                return content[1]
    return ""
