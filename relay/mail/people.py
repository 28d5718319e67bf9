"""The senders and recipients of a message, and where replies go: the address fields of its header block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from relay.core.address import BadAddress, comparison_form, domain_of
from relay.core.memo import memoised
from relay.mail import encoded_word, mailbox
from relay.mail.mailbox import Mailbox, MailboxList
from relay.mail.message import Fault, Unusable

#: Fields beside From that name a sender of a message (RFC 5322 sections 3.6.2 and 3.6.6).
_SENDER, _RESENT_FROM, _RESENT_SENDER = "sender", "resent-from", "resent-sender"
#: Where one of these is, there may be an address.
_NOT_A_NAME: Final = frozenset("@<>\uff20")
#: Characters of From and Reply-To that are remembered.
_REMEMBERED: Final = 512

#: The values of one header block by lower-case name.
_Values: TypeAlias = Mapping[str, Sequence[str]]
#: The stored form of the sender, every address in From, and those of Reply-To.
_Correspondents: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]


class People:
    """The addresses in one header block."""

    def __init__(self, values: _Values, allow_utf8_local_parts: bool, *, shortcuts: bool) -> None:
        self._values = values
        self._allow = allow_utf8_local_parts
        self._shortcuts = shortcuts
        #: Entries of the fields of recipients that were read so far which are no addresses.
        self.left_out = 0

    def correspondents(self, reverse_path: str = "") -> _Correspondents:
        """The sender, every address that a mail program might show as the sender, and where replies go.

        A From that holds a name and nothing like an address takes the reverse-path, if there is one. Raises Unusable.
        """
        try:
            senders, reply_to = self._values.get("from", ()), self._values.get("reply-to", ())
            if self._shortcuts and len(senders) == 1 and len(reply_to) < 2:
                answers_to = reply_to[0] if reply_to else ""
                if len(senders[0]) + len(answers_to) <= _REMEMBERED:
                    return _correspondents_again((senders[0], answers_to, self._allow))
            return *self._senders(), self._reply_to()
        except Unusable as unusable:
            name = self._name_alone() if unusable.fault is Fault.NO_FROM and reverse_path else ""
            if not name:
                raise
            return mailbox.with_name(name, reverse_path), (reverse_path,), self._reply_to()

    def _senders(self) -> tuple[str, tuple[str, ...]]:
        """The stored form of the first sender, and every address that a reader might see in any From field."""
        candidates: list[Mailbox] = []
        others: list[Mailbox] = []
        for view in self._values.get("from", ()):
            found = self._read(view)
            candidates += found.mailboxes
            if found.doubtful:
                others += mailbox.lookalikes(view)
        seen: dict[str, str] = {}
        sender = ""
        for shown in candidates:
            address = self._address(shown)
            if address:
                sender = sender or mailbox.with_name(shown.name, address)
                seen.setdefault(comparison_form(address), address)
        if not sender:
            raise Unusable(Fault.NO_FROM, "no usable From address")
        for other in others:
            # What counts is its domain, whatever its local part is.
            local = other.local if other.local.isascii() else "?"
            address = _address_or_none(Mailbox("", local, other.domain), allow_utf8_local_parts=False)
            if address:
                seen.setdefault(comparison_form(address), address)
        return sender, tuple(seen.values())

    def _name_alone(self) -> str:
        """The name in the only From field; empty where there is anything beside it."""
        views = self._values.get("from", ())
        if len(views) != 1 or not _NOT_A_NAME.isdisjoint(views[0] + encoded_word.decode(views[0])):
            return ""
        # Whatever the name is, an address behind it is read as one with a name.
        found = self._read(f"{views[0]} <name@of.invalid>")
        return found.mailboxes[0].name if len(found.mailboxes) == 1 and not found.left_out else ""

    def recipients(self, key: str) -> tuple[str, ...]:
        """The addresses of all fields of that name. Raises Unusable."""
        views = self._values.get(key)
        if not views:
            return ()
        if self._shortcuts and len(views) == 1:
            address = mailbox.sole_address(views[0])
            if address is not None:
                return (address,)
        mailboxes: list[Mailbox] = []
        for view in views:
            found = self._read(view)
            mailboxes += found.mailboxes
            self.left_out += found.left_out
        try:
            addresses, left_out = mailbox.addresses(mailboxes, allow_utf8_local_parts=self._allow)
        except BadAddress as error:
            raise Unusable(Fault.UTF8_LOCAL_PART, "the local part of an address is not ASCII") from error
        self.left_out += left_out
        return addresses

    def header_senders(self) -> dict[str, tuple[str, ...]]:
        """By lower-case name, every address that a reader might see in the fields beside From that name a sender; none
        for a field that can't be read with certainty.
        """
        values = self._values
        # perf: one by one 0.1 µs, frozenset.isdisjoint 0.3 µs, which asks for each field of the message: python -m
        # timeit -s "v = dict.fromkeys('abcdefghi')" "'sender' in v or 'resent-from' in v or 'resent-sender' in v"
        if not (_SENDER in values or _RESENT_FROM in values or _RESENT_SENDER in values):
            return {}
        return {
            key: self._header_senders(values[key]) for key in (_SENDER, _RESENT_FROM, _RESENT_SENDER) if key in values
        }

    def _header_senders(self, views: Sequence[str]) -> tuple[str, ...]:
        seen: list[str] = []
        for view in views:
            found = mailbox.parse(view, shortcuts=self._shortcuts)
            if found.left_out or found.cut:
                return ()
            for each in [*found.mailboxes, *(mailbox.lookalikes(view) if found.doubtful else ())]:
                local = each.local if each.local.isascii() else "?"
                address = _address_or_none(Mailbox("", local, each.domain), allow_utf8_local_parts=False)
                if address is None:
                    return ()
                seen.append(address)
        return tuple(seen)

    def _reply_to(self) -> tuple[str, ...]:
        """The addresses of Reply-To; those that can't be stored are left out."""
        found: dict[str, str] = {}
        for view in self._values.get("reply-to", ()):
            for each in self._read(view).mailboxes:
                address = _address_or_none(each, allow_utf8_local_parts=self._allow)
                if address and "." in domain_of(address):
                    found.setdefault(comparison_form(address), address)
        return tuple(found.values())

    def _read(self, view: str) -> MailboxList:
        found = mailbox.parse(view, shortcuts=self._shortcuts)
        if found.cut:
            raise Unusable(Fault.TOO_MANY_ADDRESSES, "more addresses in a header field than are read")
        return found

    def _address(self, each: Mailbox) -> str | None:
        """The stored form of a sender. Raises Unusable for a local part that isn't ASCII."""
        try:
            return mailbox.address_of(each, allow_utf8_local_parts=self._allow)
        except BadAddress as error:
            if error.utf8_local_part:
                raise Unusable(Fault.UTF8_LOCAL_PART, "the local part of an address is not ASCII") from error
            return None


def _address_or_none(each: Mailbox, *, allow_utf8_local_parts: bool) -> str | None:
    try:
        return mailbox.address_of(each, allow_utf8_local_parts=allow_utf8_local_parts)
    except BadAddress:
        return None


@memoised(entries=1024, octets=_REMEMBERED + 160)
def _correspondents_again(key: tuple[str, str, bool]) -> _Correspondents:
    """`People.correspondents` for the views that one mail after another has: an application has few senders."""
    sender, reply_to, allow_utf8_local_parts = key
    people = People({"from": [sender], "reply-to": [reply_to]}, allow_utf8_local_parts, shortcuts=True)
    return *people._senders(), people._reply_to()
