"""Mailboxes of a row (RFC 5322 section 3.4) as they may leave: 7-bit, and one mailbox each, whatever was stored."""

from __future__ import annotations

import re
from typing import Final

from relay.core.address import BadAddress, normalise_domain
from relay.core.memo import memoised
from relay.delivery.encoding import clean
from relay.mail import encoded_word

_LOCAL: Final = re.compile(r'(?:[^\s"(),:;<>@\[\\\]\x00-\x1f\x7f]{1,256}|"(?:[^"\\\x00-\x1f\x7f]|\\[ -~]){0,256}")\Z')
_DOMAIN: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?\Z")
#: A display name that may stand as it is: atoms (with full stops, as most programs write), and strings in quotes.
_WORD: Final = r"(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~-][A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]*|\"(?:[^\"\\]|\\.)*\")"
_PHRASE: Final = re.compile(rf"{_WORD}(?: +{_WORD})*\Z")
_IN_QUOTES: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"\Z")
_ESCAPED: Final = re.compile(r"\\(.)")
# perf: 10 µs less for a mail, since a sender has many, and for each its address is asked for five times:
# python -m timeit -s 'from relay.delivery.mailbox import shown' 'shown("A B <a@b.example>")'


@memoised(entries=256, octets=512)
def address_of(mailbox: str) -> str:
    """The bare address of `Name <a@b.c>` or `a@b.c`, as stored."""
    return _halves(mailbox)[1]


@memoised(entries=256, octets=512)
def sendable(address: str) -> str:
    """The address in ASCII: its domain as A-labels. Raises BadAddress for what no mail can be sent to."""
    local, _, domain = address.rpartition("@")
    if not _LOCAL.match(local):
        raise BadAddress("no address")
    if not local.isascii():
        raise BadAddress("the local part is not ASCII", utf8_local_part=True)
    if not _DOMAIN.match(domain):
        domain = normalise_domain(domain)
        if not _DOMAIN.match(domain):
            raise BadAddress("no domain name")
    return f"{local}@{domain.removesuffix('.')}"


@memoised(entries=256, octets=512)
def shown(mailbox: str) -> str:
    """A mailbox for a header field: a display name that isn't ASCII is made encoded words, one with specials is quoted.

    Raises BadAddress.
    """
    name, address = _halves(clean(mailbox))
    address = sendable(address)
    if not name:
        return address
    if name.isascii():
        if not _PHRASE.match(name):
            escaped = _plain(name).replace("\\", "\\\\").replace('"', '\\"')
            name = f'"{escaped}"'
    else:
        name = encoded_word.encode_whole(_plain(name))
    return f"{name} <{address}>"


def _halves(mailbox: str) -> tuple[str, str]:
    """Display name, with quotes and escapes if it has any, and address."""
    mailbox = mailbox.strip()
    start = mailbox.rfind("<")
    if start < 0 or not mailbox.endswith(">"):
        return "", mailbox
    return mailbox[:start].strip(), mailbox[start + 1 : -1].strip()


def _plain(name: str) -> str:
    """A display name without quotes around it and escapes in them."""
    return _ESCAPED.sub(r"\1", name[1:-1]) if _IN_QUOTES.match(name) else name
