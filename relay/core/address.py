"""Mail addresses in the one form that is stored, compared and looked up (RFC 5321 section 4.1.2, RFC 5890, contract
section 3).
"""

from __future__ import annotations

import re
import unicodedata

import idna

from relay.core.memo import memoised

#: The widest that the columns of the contract hold.
MAX_ADDRESS_LENGTH = 512

#: Of a domain name and of a label of it (RFC 1035 section 2.3.4). An A-label is never shorter than its U-label in
#: composed form, so what is longer needs no conversion: the time for that grows with the square of a label's length.
_MAX_DOMAIN = 253
_MAX_LABEL = 63
#: Characters that are composed at most.
_MAX_WRITTEN = 4 * _MAX_DOMAIN
_FULL_STOPS = re.compile("[.\u3002\uff0e\uff61]")

_PLAIN_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*\Z", re.ASCII)
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z", re.ASCII)

#: The same with characters that aren't ASCII (RFC 6532 section 3.2).
_UTF_8_DOT_ATOM = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]++(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]++)*\Z"
)
#: What ends or quotes a local part.
_SPECIALS = frozenset('"(),:;<>@[\\]')


class BadAddress(ValueError):
    """Not an address that mail can be sent to. `utf8_local_part`: the one case that a setting can allow."""

    def __init__(self, reason: str, *, utf8_local_part: bool = False) -> None:
        super().__init__(reason)
        self.utf8_local_part = utf8_local_part


@memoised(entries=4096, octets=600)
def normalise_domain(domain: str) -> str:
    """The domain as lower-case A-labels (IDNA 2008, with the mapping of UTS 46), without a final dot.

    Raises BadAddress for anything that is no domain name: empty labels, address literals, characters that IDNA refuses.
    """
    lowered = domain.rstrip(".").lower() if domain.endswith(".") and not domain.endswith("..") else domain.lower()
    if _PLAIN_DOMAIN.match(lowered):
        return lowered
    composed = unicodedata.normalize("NFC", lowered) if len(lowered) <= _MAX_WRITTEN else lowered
    if len(composed) > _MAX_DOMAIN + 1 or max(map(len, _FULL_STOPS.split(composed))) > _MAX_LABEL:
        raise BadAddress("domain is too long")
    try:
        encoded = idna.encode(composed, uts46=True).decode("ascii").lower()
    except idna.IDNAError as error:
        raise BadAddress("domain is not valid") from error
    # The mapping makes a final dot of the full stops of other scripts, and of one before characters that it drops.
    return encoded.removesuffix(".")


def normalise(local: str, domain: str, *, allow_utf8_local_part: bool = False) -> str:
    """`local@domain` in the stored form. `local` is given unquoted; it is quoted again only where the grammar needs it.

    Raises BadAddress where SES could not send to it: no domain, a control character, too long, and a local part that
    isn't ASCII unless `allow_utf8_local_part`; one that can't be shown in any case.
    """
    if not domain:
        raise BadAddress("local@domain is required")
    if len(local) > MAX_ADDRESS_LENGTH:
        raise BadAddress("address is too long")
    if not _DOT_ATOM.match(local):
        local = _unusual_local_part(local, allow_utf8_local_part=allow_utf8_local_part)
    address = f"{local}@{normalise_domain(domain)}"
    if len(address) > MAX_ADDRESS_LENGTH:
        raise BadAddress("address is too long")
    return address


def _unusual_local_part(local: str, *, allow_utf8_local_part: bool) -> str:
    """A local part that isn't a dot-atom of ASCII, quoted where the grammar needs it. Raises BadAddress."""
    if not local:
        raise BadAddress("local@domain is required")
    if any(character < " " or character == "\x7f" for character in local):
        raise BadAddress("control character in the local part")
    if local.isascii():
        return _quoted(local)
    if not allow_utf8_local_part:
        raise BadAddress("local part is not ASCII", utf8_local_part=True)
    if not local.isprintable():
        # Halves of surrogate pairs, line separators, blanks that aren't ASCII, and what turns the reading direction
        # around.
        raise BadAddress("character in the local part that can't be shown")
    if _SPECIALS & set(unicodedata.normalize("NFKC", local)) - set(local):
        # A program that reads a full-width at sign as `@` sees another address.
        raise BadAddress("character in the local part that may be taken for another")
    return local if _UTF_8_DOT_ATOM.match(local) else _quoted(local)


def _quoted(local: str) -> str:
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


def domain_of(address: str) -> str:
    """The domain of an address in the stored form."""
    return address.rpartition("@")[2]


def comparison_form(address: str) -> str:
    """What two spellings of one mailbox have in common for us, and what email_suppressions.email holds: trimmed, lower
    case.
    """
    return address.strip().lower()
