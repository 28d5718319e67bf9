"""Where a click leads to, as it can stand in a Location field (RFC 9110 section 10.2.2)."""

from __future__ import annotations

import contextlib
import re
from typing import Final
from urllib.parse import quote

from relay.core.address import BadAddress, normalise_domain

#: What URL parsers leave out of a link wherever it stands (WHATWG URL, section 4.4), and at its ends.
_DROPPED: Final = str.maketrans("", "", "\t\r\n")
_STRIPPED: Final = "".join(map(chr, range(0x21)))
_PLAIN: Final = re.compile(r"https?://[!#-;=?-~]+", re.IGNORECASE)
_SCHEMES: Final = ("http://", "https://")
#: All that is visible ASCII stays as it is, escapes included; what is not, or would end a quoted URL, is escaped.
_KEPT: Final = "".join(chr(number) for number in range(0x21, 0x7F) if chr(number) not in '"<>')
_HOST: Final = re.compile(r"[a-z]+://(?:[^/?#\\@]*@)?([^/?#\\@:\[\]]+)", re.IGNORECASE)


def location_of(target: str) -> str | None:
    """The URL in ASCII, without control characters; None for one that is not of HTTP."""
    if _PLAIN.fullmatch(target):
        return target
    url = target.translate(_DROPPED).strip(_STRIPPED)
    if not url[:8].lower().startswith(_SCHEMES):
        return None
    host = _HOST.match(url)
    if host is not None and not host[1].isascii():
        # Browsers know escapes in host names, and names that IDNA 2008 does not.
        with contextlib.suppress(BadAddress):
            url = url[: host.start(1)] + normalise_domain(host[1]) + url[host.end(1) :]
    return quote(url.encode("utf-8", "replace"), safe=_KEPT)
