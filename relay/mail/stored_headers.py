"""Which headers are stored, and in what form (contract section 3, "A row that can be sent")."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from relay.core.address import BadAddress, domain_of
from relay.mail import encoded_word, mailbox, opensend_fields
from relay.mail.header_block import Field

#: SES takes 15, and the worker adds one.
MAX_HEADERS: Final = 14
#: A name, `: ` and a value together stay under the 998 characters of RFC 5322 section 2.1.1.
_MAX_NAME_AND_VALUE: Final = 996
_MAX_NAME: Final = 126
#: Octets beyond which a value that isn't ASCII is not even encoded: no charset makes it fit.
_TOO_LONG_TO_ENCODE: Final = 4000
#: Names that are reported as dropped, at most.
_MAX_REPORTED: Final = 100

_NAME = re.compile(r"[!-9;-~]{1,126}\Z")
_PRINTABLE = re.compile(r"[ -~]+\Z")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
_MESSAGE_ID = re.compile(r"<[^<>\s]+>")
_IN_ANGLES = re.compile(r"<[^<>]*+>")
_PARTED_ID = re.compile(r"<[^<> ]*+ ")
#: What stays as it stands in a URL.
_ASCII: Final = "".join(map(chr, range(0x80)))
#: An address, a message id or a URL in angle brackets, with the blanks around it: never part of an encoded word. Blanks
#: are tried from the first of a run alone, and what is in the brackets is taken once.
_REFERENCE = re.compile(r"(?:(?<![ \t])[ \t]++)?(<(?=[!-;=?-~]*[@:])[!-;=?-~]*+>)[ \t]*+")

_COLUMNS = frozenset(
    ("from", "to", "cc", "bcc", "subject", "reply-to", "mime-version", "message-id", "date", "resent-bcc")
)
_TRACE = frozenset(
    (
        "received",
        "return-path",
        "delivered-to",
        "x-original-to",
        "dkim-signature",
        "domainkey-signature",
        "x-google-dkim-signature",
        "authentication-results",
        "x-original-authentication-results",
        "received-spf",
        "x-received",
        "x-delivered-to",
        "envelope-to",
        "x-envelope-to",
        "x-envelope-from",
        "delivery-date",
        "x-gm-message-state",
        "x-google-smtp-source",
        "x-mozilla-status",
        "x-mozilla-status2",
        "content-length",
        "lines",
        "x-uidl",
    )
)
_LEFT_OUT: Final = (
    _COLUMNS | opensend_fields.FIELDS | _TRACE | {"x-entity-id", "content-type", "content-transfer-encoding"}
)
_LEFT_OUT_PREFIXES: Final = ("content-", "arc-", "x-ses-")
#: Fields of message ids, in which no encoded word may stand (RFC 2047 section 5).
_MESSAGE_IDS: Final = frozenset(("references", "in-reply-to"))

#: The first of these that match go before all others when there are too many.
_RANKS: Final = (
    "in-reply-to",
    "references",
    "list-",
    "auto-submitted",
    "precedence",
    "feedback-id",
    "sender",
    "x-priority",
    "importance",
    "x-entity-ref-id",
)


def select(fields: list[Field], *, shortcuts: bool = True) -> tuple[dict[str, str], tuple[str, ...]]:
    """The headers to store, in the order of the message, and the names of those that could not be.

    A name that comes several times keeps all its values, joined by a comma and a space, under its first spelling.
    Values are printable
    ASCII; text that isn't is in encoded words, and so is text whose encoded words would decode to a line end or NUL.
    `shortcuts=False` weighs even what is stored as it stands, for the tests that compare the two ways.
    """
    if shortcuts:
        as_they_stand = _as_they_stand(fields)
        if as_they_stand is not None:
            return as_they_stand, ()
    values: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    dropped: list[str] = []
    for key, name, view in fields:
        if not view or key in _LEFT_OUT or key.startswith(_LEFT_OUT_PREFIXES):
            continue
        if len(view) > _TOO_LONG_TO_ENCODE and not view.isascii():
            dropped.append(name[:_MAX_NAME])
            continue
        value = _value(key, view)
        if value:
            values.setdefault(key, []).append(value)
            names.setdefault(key, name)
    if not values and not dropped:
        return {}, ()
    kept: dict[str, str] = {}
    for key, several in values.items():
        room = _MAX_NAME_AND_VALUE - len(key)
        value = several[0] if len(several) == 1 else _joined(key, several, room, dropped)
        if len(value) > room and key in _MESSAGE_IDS:
            value = _shortened(value, room)
        if 0 < len(value) <= room and _NAME.match(names[key]):
            kept[key] = value
        else:
            dropped.append(names[key][:_MAX_NAME])
    if len(kept) > MAX_HEADERS:
        ranked = sorted(kept, key=_rank)
        chosen = set(ranked[:MAX_HEADERS])
        dropped += [names[key] for key in kept if key not in chosen]
        kept = {key: value for key, value in kept.items() if key in chosen}
    return {names[key]: value for key, value in kept.items()}, tuple(dropped[:_MAX_REPORTED])


def _as_they_stand(fields: list[Field]) -> dict[str, str] | None:
    """All headers that are for storing, where there is nothing to change or to choose; else None."""
    kept: dict[str, str] = {}
    keys = set()
    for key, name, view in fields:
        if key in _LEFT_OUT or not view or key.startswith(_LEFT_OUT_PREFIXES):
            continue
        if "=?" in view or not view.isascii() or not view.isprintable() or key in keys:
            return None
        if " " in view and (key.startswith("list-") or (key in _MESSAGE_IDS and _PARTED_ID.search(view))):
            return None
        # Of what characters a name is, the header block has seen to.
        if len(name) > _MAX_NAME or len(name) + len(view) > _MAX_NAME_AND_VALUE:
            return None
        keys.add(key)
        kept[name] = view
    return kept if len(kept) <= MAX_HEADERS else None


def _rank(key: str) -> int:
    return next(
        (rank for rank, name in enumerate(_RANKS) if key == name or (name == "list-" and key.startswith(name))),
        len(_RANKS),
    )


def _value(key: str, view: str) -> str:
    """The stored form of one value, given as a latin-1 view."""
    if key in _MESSAGE_IDS or key.startswith("list-"):
        view = _references(key, view)
    if _PRINTABLE.match(view) and "=?" not in view:
        return view
    view = view.replace("\0", "")
    text = encoded_word.decode(view)
    as_it_stands = view.isascii() and not _CONTROLS.search(text)
    # Readers find no address in an encoded word, even if all of a field is in some (docs/mime.md, rule 15).
    if "@" in text and not (as_it_stands and "@" in view):
        mailboxes = _mailboxes(view)
        if mailboxes:
            return mailboxes
    if as_it_stands:
        return _CONTROLS.sub(" ", view).strip()
    return _encoded(_CONTROLS.sub(" ", text).strip())


def _references(key: str, view: str) -> str:
    """A value of URLs or message ids in angle brackets as readers look for them: without the blanks of folding (RFC
    2369 section 2), octets above 127 of a URL as escapes (RFC 3987 section 3.1), and in no encoded words where a
    library put it into some.
    """
    if "=?" in view:
        decoded = encoded_word.decode(view)
        if "<" in decoded and _PRINTABLE.match(decoded):
            view = decoded
    if " " in view:
        view = _IN_ANGLES.sub(lambda match: match[0].replace(" ", ""), view)
    if not view.isascii() and key not in _MESSAGE_IDS:
        view = _IN_ANGLES.sub(lambda match: quote(match[0].encode("latin-1"), safe=_ASCII), view)
    return view


def _mailboxes(view: str) -> str:
    """A list of mailboxes, each name in encoded words where it needs them; empty for what is anything else."""
    if ":" in view or "(" in view:
        return ""
    found = mailbox.parse(view)
    if found.doubtful or found.left_out or found.cut:
        return ""
    try:
        addresses = [mailbox.address_of(each, allow_utf8_local_parts=False) for each in found.mailboxes]
    except BadAddress:
        return ""
    if any("." not in domain_of(address) for address in addresses):
        # Text with an `@`: what its characters become in a domain (`²` is 2) is no matter of it.
        return ""
    named = zip(found.mailboxes, addresses, strict=True)
    return ", ".join(mailbox.with_name(each.name, address) for each, address in named)


def _encoded(text: str) -> str:
    """`text` in encoded words where it needs them, without what stands in angle brackets to be found."""
    pieces = _REFERENCE.split(text)
    return " ".join(piece if number % 2 else encoded_word.encode(piece) for number, piece in enumerate(pieces) if piece)


def _joined(key: str, several: list[str], room: int, dropped: list[str]) -> str:
    """As many of the values as there is room for."""
    separator = " " if key in _MESSAGE_IDS else ", "
    if any("=?" in each for each in several):
        # A separator that touches an encoded word would undo it, so it goes into the word.
        value = encoded_word.encode(_CONTROLS.sub(" ", separator.join(map(encoded_word.decode, several))))
        if len(value) <= room:
            return value
    whole = separator.join(several)
    if len(whole) <= room or separator == " ":
        return whole
    value = ""
    for each in several:
        longer = f"{value}{separator}{each}" if value else each
        if len(longer) <= room:
            value = longer
        else:
            dropped.append(key[:_MAX_NAME])
    return value


def _shortened(value: str, room: int) -> str:
    """The first message id and as many of the last as fit (RFC 5322 section 3.6.4); empty if there are none."""
    ids = _MESSAGE_ID.findall(value)
    if not ids or len(ids[0]) > room:
        return ""
    length = len(ids[0])
    last: list[str] = []
    for each in reversed(ids[1:]):
        length += 1 + len(each)
        if length > room:
            break
        last.append(each)
    return " ".join([ids[0], *reversed(last)])
