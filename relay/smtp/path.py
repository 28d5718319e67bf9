"""The argument of MAIL and RCPT: a path and parameters (RFC 5321 section 4.1.2), read as tolerantly as is harmless."""

from __future__ import annotations

import re

from relay.core.frozen import frozen
from relay.core.memo import memoised

#: [<][@route,…:]local@domain: the angle brackets optional as some clients forget them, blanks around it allowed.
#: Alternatives begin with different characters and repetitions give nothing back, so that every input takes time in
#: proportion to its length.
_PATH = re.compile(
    r"""
    [ \t]*+
    (?P<open><[ \t]*+)?
    (?:@[^:<>"\s]*+:)?
    (?:"(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*)"|(?P<dotted>[^\s<>"@,:;()\[\]\\]*+))
    (?P<at>@(?P<domain>[^\s<>@"]*+))?
    (?P<close>[ \t]*+>)?
    (?=[ \t]|\Z)""",
    re.VERBOSE,
)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_KEYWORD = re.compile(r"[A-Z0-9][A-Z0-9-]*\Z")


@frozen
class Path:
    """A reverse-path or forward-path as it was given, `local` without its quotes; the null path has neither part."""

    local: str
    domain: str
    parameters: dict[str, str]

    @property
    def null(self) -> bool:
        """Whether it is `<>`."""
        return not self.local and not self.domain


@memoised(entries=512, octets=1200)
def parse_path(argument: str) -> Path | None:
    """What follows `FROM:` or `TO:`; None when it isn't a path.

    Source routes are ignored, as RFC 5321 section 3.3 asks; parameter names come in upper case. The last ones are
    remembered: a client that sends many mails sends them from one path.
    """
    match = _PATH.match(argument)
    if match is None:
        return None
    bracket, quoted, local, at, domain, closing = match.group("open", "quoted", "dotted", "at", "domain", "close")
    if bool(bracket) != bool(closing):
        return None
    if not local:
        if quoted is not None:
            local = _QUOTED_PAIR.sub(r"\1", quoted)
        elif at or not bracket:
            return None
    parameters: dict[str, str] = {}
    for word in argument[match.end() :].replace("\t", " ").split(" "):
        if word:
            keyword, _, value = word.partition("=")
            keyword = keyword.upper()
            if not _KEYWORD.match(keyword) or keyword in parameters:
                return None
            parameters[keyword] = value
    return Path(local=local or "", domain=domain or "", parameters=parameters)
