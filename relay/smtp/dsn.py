"""The form of what clients say about delivery status notifications (RFC 3461), which the relay takes and ignores.

It does not offer DSN: OpenSend reports what became of a mail by webhook. Clients that use it unasked would lose mail if
that were refused.
"""

from __future__ import annotations

import re

#: Characters of an envelope identifier (section 4.4) and of an original recipient (section 4.2), encoded as they come.
_MAX_ENVELOPE_ID = 100
_MAX_ORIGINAL_RECIPIENT = 500

#: Section 4, xtext: printable ASCII but `+` and `=`, and `+` with two hexadecimal digits.
_XTEXT = re.compile(r"[!-*,-<>-~]*+(?:\+[0-9A-Fa-f]{2}[!-*,-<>-~]*+)*")
#: RFC 6533 section 3, utf-8-addr-unitext: besides what xtext has, characters that aren't ASCII, and `=`.
_UNITEXT = re.compile(r"[!-*,-~\x80-\U0010ffff]*+(?:\+[0-9A-Fa-f]{2}[!-*,-~\x80-\U0010ffff]*+)*")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]++")
_NOTIFICATIONS = frozenset(("SUCCESS", "FAILURE", "DELAY"))


def is_notify(value: str) -> bool:
    """Whether it is a value of NOTIFY (section 4.1): NEVER alone, or a list of the others."""
    words = value.upper().split(",")
    return words == ["NEVER"] or _NOTIFICATIONS.issuperset(words)


def is_return(value: str) -> bool:
    """Whether it is a value of RET (section 4.3)."""
    return value.upper() in ("FULL", "HDRS")


def is_envelope_id(value: str) -> bool:
    """Whether it is a value of ENVID (section 4.4)."""
    return 0 < len(value) <= _MAX_ENVELOPE_ID and _XTEXT.fullmatch(value) is not None


def is_original_recipient(value: str, *, utf8: bool) -> bool:
    """Whether it is a value of ORCPT (section 4.2). `utf8`: the transaction has SMTPUTF8."""
    kind, semicolon, address = value.partition(";")
    if not semicolon or not address or len(value) > _MAX_ORIGINAL_RECIPIENT or not _ADDRESS_TYPE.fullmatch(kind):
        return False
    form = _UNITEXT if utf8 and kind.upper() == "UTF-8" else _XTEXT
    return form.fullmatch(address) is not None
