"""Address lists in header fields (RFC 5322 section 3.4), well-formed or not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from relay.core.address import MAX_ADDRESS_LENGTH, BadAddress, comparison_form, domain_of, normalise, normalise_domain
from relay.mail import address_spec, charset, encoded_word, flanker_address
from relay.mail.address_list import AddressList

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = "[A-Za-z0-9][A-Za-z0-9-]*+"
#: A local part that begins with one of these may be half of something in quotes or brackets. A domain without a full
#: stop is no recipient's. What has more full stops is longer than any address (RFC 1035 section 2.3.4): the engine
#: would remember each of them until the match is done.
_ADDR_SPEC = rf"(?!['`{{|])([{_ATEXT}]++(?:\.[{_ATEXT}]++){{0,255}})@({_LABEL}(?:\.{_LABEL}){{1,127}}\.?)"
_ELEMENT = re.compile(
    rf'[ \t]*+(?:(?:"([^"\\]*+)"[ \t]*+|([{_ATEXT} \t.]*+))<{_ADDR_SPEC}>|{_ADDR_SPEC})[ \t]*+(?:[,;][ \t]*+|\Z)'
)
#: Mailboxes of one field that are taken; no setting lets a message have so many recipients.
_MAX_MAILBOXES = 100_000
#: Addresses that are looked for in a field that can't be read with certainty.
_MAX_LOOKALIKES = 1000

#: An encoded word is one word, whatever specials were left in it.
_ENCODED_WORD = re.compile(r"=\?[^?\s]{1,60}\?[bBqQ]\?[^?]{0,500}\?=", re.ASCII)
_ENCODED_WORDS = re.compile(r"(?:=\?[^?\s]{1,60}\?[bBqQ]\?[^?]*+\?=[ \t]*+){1,100}", re.ASCII)
_NOT_IN_ADDRESS = re.compile(rf"[\s\x00-\x1f<>()\"',:;\\\[\]{address_spec.TYPOGRAPHIC}]+")
_INVISIBLE = re.compile(f"[{address_spec.INVISIBLE}]+")
_PLAIN_NAME = re.compile(rf"[{_ATEXT} ]+\Z")
_NAME_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Mailbox(NamedTuple):
    """One mailbox as written: all three are latin-1 views of octets, without quotes and escapes."""

    name: str
    local: str
    domain: str


@dataclass(slots=True)
class MailboxList:
    """What one field holds. `doubtful`: another reader might take other addresses from it.

    `left_out` counts the entries that are no addresses; `cut`: there is more than is looked at.
    """

    mailboxes: list[Mailbox] = field(default_factory=list)
    doubtful: bool = False
    left_out: int = 0
    cut: bool = False


def parse(view: str, *, shortcuts: bool = True) -> MailboxList:
    """The mailboxes in a field's latin-1 view: members of groups included, comments and routes stripped. Never raises.

    Lists of plain mailboxes take a strict expression, others flanker's grammar, and what that refuses the tolerant
    reading (`address_list`).
    `shortcuts=False` leaves out the first, for the tests that compare the ways. Linear in the length of `view`.
    """
    view = charset.utf_8_view(view)
    if shortcuts:
        found = MailboxList()
        position = _plain(view, found)
        if position == len(view) or len(found.mailboxes) == _MAX_MAILBOXES:
            found.cut = position < len(view)
            return found
    if "=?" in view:
        decoded = _encoded_mailbox(view)
        if decoded is not None:
            return MailboxList([decoded])
    by_grammar = flanker_address.parse(view)
    if by_grammar is not None:
        return MailboxList([Mailbox(*each) for each in by_grammar])
    reading = AddressList(_text(view))
    reading.read()
    mailboxes = [Mailbox(_view(name), _view(spec.local), _view(spec.domain)) for name, spec in reading.found]
    return MailboxList(
        mailboxes[:_MAX_MAILBOXES],
        doubtful=reading.doubtful,
        left_out=reading.left_out,
        cut=reading.cut or len(mailboxes) > _MAX_MAILBOXES,
    )


def _encoded_mailbox(view: str) -> Mailbox | None:
    """The name and address of a field that is encoded words and nothing else; None where they are anything but one
    mailbox.

    RFC 2047 section 5 forbids it, and some libraries encode a field as a whole.
    """
    position = 0
    while (words := _ENCODED_WORDS.match(view, position)) is not None:
        position = words.end()
    if position < len(view):
        return None
    text = encoded_word.decode(view)
    if "<" not in text or "=?" in text or _NAME_CONTROLS.search(text):
        return None
    view = _view(text)
    found = parse(view, shortcuts=False)
    if len(found.mailboxes) != 1 or found.left_out or found.cut:
        return None
    only = found.mailboxes[0]
    # An `@` in the name makes it doubtful, but nothing that looks like a second address.
    clear = not found.doubtful or all(each[1:] == only[1:] for each in lookalikes(view))
    return only if clear else None


def _plain(view: str, found: MailboxList) -> int:
    """Takes mailboxes that leave no doubt from the beginning; the offset where the first that does begins."""
    position = 0
    while position < len(view) and len(found.mailboxes) < _MAX_MAILBOXES:
        match = _ELEMENT.match(view, position)
        if match is None:
            break
        quoted, plain, local, domain, bare_local, bare_domain = match.groups()
        if quoted and not quoted.isascii():
            break  # what is invisible at the ends of a name is none of it, which the long way knows
        if local is None:
            mailbox = Mailbox("", bare_local, bare_domain)
        else:
            mailbox = Mailbox(plain.rstrip() if quoted is None else quoted, local, domain)
        if "=?" in match[0] and _cut_word(mailbox):
            break
        found.mailboxes.append(mailbox)
        position = match.end()
    return position


def sole_address(view: str) -> str | None:
    """The stored form of the only mailbox in a field's latin-1 view; None where it leaves any doubt.

    That is what `parse` and `addresses` find too, in a quarter of the time: most fields hold one plain address.
    """
    match = _ELEMENT.match(view)
    if match is None or match.end() < len(view) or "=?" in view:
        return None
    _, _, local, domain, bare_local, bare_domain = match.groups()
    try:
        address = f"{local or bare_local}@{normalise_domain(domain or bare_domain)}"
    except BadAddress:
        return None
    return address if len(address) <= MAX_ADDRESS_LENGTH else None


def addresses(mailboxes: Sequence[Mailbox], *, allow_utf8_local_parts: bool) -> tuple[tuple[str, ...], int]:
    """The stored form of each mailbox, each once, and how many were left out because they can't be sent to.

    A domain needs a full stop: SES refuses a whole mail for one recipient without. Raises BadAddress for a local part
    that isn't ASCII, unless they are allowed.
    """
    found: dict[str, str] = {}
    left_out = 0
    for mailbox in mailboxes:
        try:
            address = address_of(mailbox, allow_utf8_local_parts=allow_utf8_local_parts)
        except BadAddress as error:
            if error.utf8_local_part:
                raise
            left_out += 1
            continue
        if "." in domain_of(address):
            found.setdefault(comparison_form(address), address)
        else:
            left_out += 1
    return tuple(found.values()), left_out


def address_of(mailbox: Mailbox, *, allow_utf8_local_parts: bool) -> str:
    """The stored form of one mailbox. Raises BadAddress."""
    local = charset.decode_view(mailbox.local)
    domain = charset.decode_view(mailbox.domain)
    return normalise(local, domain, allow_utf8_local_part=allow_utf8_local_parts)


def lookalikes(view: str) -> list[Mailbox]:
    """Every stretch of a field that some reader might take for an address, wherever it stands; the first thousand.

    A domain without a full stop is left out.
    """
    text = _text(charset.utf_8_view(view))
    joined = " ".join(text.split()).replace(" @", "@").replace("@ ", "@").replace(" .", ".")
    found: dict[Mailbox, None] = {}
    for way in (text, joined) if joined != text else (text,):
        for stretch in _NOT_IN_ADDRESS.split(_INVISIBLE.sub("", way)):
            if len(found) >= _MAX_LOOKALIKES:
                break
            for local, domain in pairwise(stretch.split("@")):
                if local and "." in domain.strip("."):
                    found[Mailbox("", _view(local), _view(domain.strip(".")))] = None
    return list(found)[:_MAX_LOOKALIKES]


def with_name(name_view: str, address: str) -> str:
    """`Name <address>` for emails."from": ASCII, at most 512 characters; the name is shortened, not the address."""
    name = " ".join(_NAME_CONTROLS.sub(" ", encoded_word.decode(name_view)).split())
    while name and name != address:
        if not name.isascii() or "=?" in name:
            phrase = encoded_word.encode_whole(name)
        elif _PLAIN_NAME.match(name):
            phrase = name
        else:
            phrase = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        sender = f"{phrase} <{address}>"
        if len(sender) <= MAX_ADDRESS_LENGTH:
            return sender
        name = name[: min(len(name) * 3 // 4, 400)].rstrip()
    return address


def _text(view: str) -> str:
    """The characters of a view in UTF-8. Octets that belong to none are lone surrogates."""
    return view if view.isascii() else view.encode("latin-1").decode("utf-8", "surrogateescape")


def _view(text: str) -> str:
    """The view that `_text` was made of."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def _cut_word(mailbox: Mailbox) -> bool:
    """Whether specials inside an encoded word were taken for those of the list."""
    rest = _ENCODED_WORD.sub("", mailbox.name)
    return "=?" in mailbox.local or "=?" in rest or "?=" in rest
