"""The spellings in which a suppression may hold a mailbox (contract section 3: trimmed, lower case).

A recipient is compared in one form: lower case, the domain as A-labels without a final full stop. A program that writes
a suppression may have left the domain as U-labels (RFC 5890 section 2.3.2.1) or with the final full stop that makes it
absolute (RFC 1034 section 3.1), and the relay can't change rows that are OpenSend's. So a look-up asks for each of
these forms by the unique index; it never reads a user's whole list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import Final
from unicodedata import normalize

import idna

from relay.core.address import BadAddress, comparison_form, normalise
from relay.core.memo import memoised

#: Full stops that IDNA takes for the one between labels (UTS 46 section 2.3): ideographic, fullwidth, halfwidth.
_FULL_STOPS: Final = (".", "\u3002", "\uff0e", "\uff61")
#: Labels are combined in all their forms up to so many; beyond that all have one form.
_MAX_COMBINATIONS: Final = 27
#: A dot-atom at a domain without A-labels and without a final full stop: most are so.
_CANONICAL: Final = re.compile(
    r"[a-z0-9!#$%&'*+/=?^_`{|}~-]++(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]++)*@(?![^@]*xn--)[a-z0-9_.-]*+(?<!\.)"
)
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def spellings(mailbox: str) -> tuple[str, ...]:
    """All forms of a mailbox (comparison form) that a suppression may have, its own first."""
    # perf: 0.2 µs for an address without anything unusual, of which there is one for each recipient of each mail:
    # python -m timeit -s 'from relay.core.spellings import spellings' 'spellings("recipient@example.com")'
    if mailbox.isascii() and "xn--" not in mailbox and not mailbox.startswith('"'):
        return (mailbox, mailbox + ".")
    return _unusual(mailbox)


def mailbox_of(stored: str) -> str:
    """The mailbox (comparison form) that a suppression stands for. What is no address stands for itself."""
    text = comparison_form(stored)
    if _CANONICAL.fullmatch(text):
        return text
    local, _, domain = text.rpartition("@")
    try:
        return comparison_form(normalise(_unquoted(local), domain, allow_utf8_local_part=True))
    except BadAddress:
        return text


def _unusual(mailbox: str) -> tuple[str, ...]:
    local, _, domain = mailbox.rpartition("@")
    forms = dict.fromkeys([mailbox])
    for spelled in dict.fromkeys(_domains(domain)):
        for name in (local, _unquoted(local)):
            # Without its quotes only where it can't be taken for another: trimmed, or quoted in itself.
            if name == local or (name.strip() == name and '"' not in name and "\\" not in name):
                forms[f"{name}@{spelled}"] = None
    return tuple(forms)


def _unquoted(local: str) -> str:
    if len(local) < 2 or not (local.startswith('"') and local.endswith('"')):
        return local
    return _QUOTED_PAIR.sub(r"\1", local[1:-1])


def _domains(domain: str) -> Iterator[str]:
    labels = [_labels(label) for label in domain.split(".")]
    count = 1
    for forms in labels:
        count *= len(forms)
    together = (
        product(*labels) if count <= _MAX_COMBINATIONS else zip(*(_padded(forms) for forms in labels), strict=True)
    )
    for chosen in together:
        stops = _FULL_STOPS if not "".join(chosen).isascii() else (".",)
        for stop in stops:
            for final in dict.fromkeys(("", ".", stop)):
                yield stop.join(chosen) + final


@memoised(entries=512, octets=120)
def _labels(label: str) -> tuple[str, ...]:
    """An A-label and its U-label, composed and decomposed; any other label alone."""
    if not label.startswith("xn--"):
        return (label,)
    try:
        unicode_label = idna.ulabel(label)
    except UnicodeError:
        return (label,)
    return tuple(dict.fromkeys((label, normalize("NFC", unicode_label), normalize("NFD", unicode_label))))


def _padded(forms: tuple[str, ...]) -> tuple[str, str, str]:
    return forms[0], forms[min(1, len(forms) - 1)], forms[-1]
