"""flanker's grammar of address lists (RFC 5322 section 3.4), for lists that it can be trusted with."""

from __future__ import annotations

import re
import warnings
from typing import Final

from relay.mail import flanker_scan as _silenced  # noqa: F401 - before flanker's grammar, which prints on import

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flanker.addresslib._parser.lexer import lexer
    from flanker.addresslib._parser.parser import Mailbox, mailbox_or_url_list_parser
    from ply.lex import LexError
    from ply.yacc import YaccError

#: Characters that the grammar is given at most: it takes 40 microseconds an address.
_MAX_LENGTH: Final = 2048

#: Not for flanker: it drops comments, which may be the name; it knows no groups and no routes; its blanks include
#: octets above 127; and it cuts encoded words at specials that were left in them.
_FOREIGN = re.compile(r"[^ -~]|[():;\[\]]|=\?")
#: Of what the grammar takes for an address, what is one: apostrophes and braces around it are not.
_ADDRESS = re.compile(r"(?!['`{|]).*@[A-Za-z0-9._-]+\Z")
#: To the end where nothing closes it, which the grammar takes for no name: all of them are found in one pass.
_QUOTED = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*)"?')
_ESCAPED = re.compile(r"\\(.)")


def parse(view: str) -> list[tuple[str, str, str]] | None:
    """Display name (quotes taken off), local part (quotes taken off) and domain of each mailbox; None where the grammar
    doesn't fit.
    """
    if len(view) > _MAX_LENGTH or _FOREIGN.search(view):
        return None
    try:
        elements = mailbox_or_url_list_parser.parse(view.strip(), lexer=lexer.clone())
    except (LexError, YaccError, SyntaxError):
        return None
    if not all(
        isinstance(element, Mailbox) and _ADDRESS.match(element.local_part + "@" + element.domain)
        for element in elements
    ):
        return None
    return [(_unquote(element.display_name), _unquote(element.local_part), element.domain) for element in elements]


def _unquote(text: str) -> str:
    return _QUOTED.sub(lambda match: _ESCAPED.sub(r"\1", match[1]), text).strip() if '"' in text else text.strip()
