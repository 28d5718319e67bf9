"""The argument of MAIL and RCPT: a path and parameters (RFC 5321 section 4.1.2), read as tolerantly as is harmless."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: <[@route,…:]local@domain>, the angle brackets optional as some clients forget them, blanks around it allowed.
#: Alternatives begin with different characters, so that no input makes the pattern try twice.
_PATH = re.compile(
    r"""
    [ \t]*
    (?P<open><)?[ \t]*
    (?:@[^:<>"\s]*:)?
    (?P<mailbox>
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<dotted>[^\s<>"@,:;()\[\]\\]*))
        (?:@(?P<domain>[^\s<>@"]*))?
    )
    [ \t]*(?P<close>>)?
    (?P<parameters>(?:[ \t].*)?)
    \Z""",
    re.VERBOSE,
)
_QUOTED_PAIR = re.compile(r"\\(.)")
_KEYWORD = re.compile(r"[A-Z0-9][A-Z0-9-]*\Z")


@dataclass(frozen=True, slots=True)
class Path:
    """A reverse-path or forward-path as it was given; the null reverse-path has neither part."""

    local: str
    domain: str
    parameters: dict[str, str]

    @property
    def null(self) -> bool:
        """Whether it is `<>`."""
        return not self.local and not self.domain


def parse_path(argument: str) -> Path | None:
    """What follows `FROM:` or `TO:`; None when it isn't a path.

    Source routes are ignored, as RFC 5321 section 3.3 asks; parameter names come in upper case.
    """
    match = _PATH.match(argument)
    if match is None or bool(match["open"]) != bool(match["close"]):
        return None
    if not match["open"] and not match["mailbox"]:
        return None
    parameters: dict[str, str] = {}
    for word in match["parameters"].split():
        keyword, _, value = word.partition("=")
        keyword = keyword.upper()
        if not _KEYWORD.match(keyword) or keyword in parameters:
            return None
        parameters[keyword] = value
    local = match["dotted"] or ""
    if match["quoted"] is not None:
        local = _QUOTED_PAIR.sub(r"\1", match["quoted"])
    return Path(local, match["domain"] or "", parameters)
