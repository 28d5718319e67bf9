"""The way from raw bytes to a `Message`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeAlias

from relay.core.address import BadAddress
from relay.core.memo import memoised
from relay.mail import body, encoded_word, mailbox, opensend_fields, stored_headers, structure
from relay.mail.mailbox import Mailbox
from relay.mail.message import Fault, Limits, Message, Unusable

DEFAULT_LIMITS: Final = Limits()

#: What SES needs of a message that is only a subject (contract section 3).
_EMPTY_BODY: Final = "\n"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
_SPACES = re.compile(r"\s+", re.ASCII)

#: Characters of From and Reply-To that are remembered.
_REMEMBERED: Final = 512

#: The values of one header block by lower-case name.
_Values: TypeAlias = Mapping[str, list[str]]
#: The stored form of the sender, every address in From, and those of Reply-To.
_Correspondents: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]


def parse(raw: bytes, limits: Limits = DEFAULT_LIMITS) -> Message:
    """The message that `raw` means: RFC 5322, line ends CRLF or LF; a bare CR is data.

    Raises Unusable, and nothing else: for no From address, bad control headers, attachments over the limit, and a local
    part that
    isn't ASCII. Damage is never a reason.
    """
    return read(raw, limits)


def read(raw: bytes, limits: Limits, *, shortcuts: bool = True) -> Message:
    """`parse`; without `shortcuts` everything takes the long way, which must lead to the same message."""
    root, parser = structure.read(raw, limits, shortcuts=shortcuts)
    head = root.about.head
    values = head.values
    people = _People(values, limits.allow_utf8_local_parts, shortcuts=shortcuts)
    sender, from_addresses, reply_to = people.correspondents()
    to, cc, bcc = people.recipients("to"), people.recipients("cc"), people.recipients("bcc")
    idempotency_key, tags = opensend_fields.read(values)
    headers, dropped = stored_headers.select(head.fields, shortcuts=shortcuts)
    content = body.read(raw, root, limits)
    # In the order of the fields: by their names it takes three times as long.
    return Message(
        sender,
        from_addresses,
        to,
        cc,
        bcc,
        reply_to,
        _subject(values),
        content.html,
        content.text or ("" if content.html else _EMPTY_BODY),
        headers,
        content.attachments,
        _message_id(values),
        idempotency_key,
        tags,
        dropped,
        parser,
    )


def _message_id(values: _Values) -> str | None:
    if "message-id" not in values:
        return None
    text = values["message-id"][0]
    if not text.isprintable() or " " in text:
        text = _SPACES.sub("", text)
    return text or None


def _subject(values: _Values) -> str:
    if "subject" not in values:
        return ""
    text = values["subject"][0]
    if "=?" in text or not text.isascii() or "\0" in text:
        text = encoded_word.decode(text)
    if not text.isprintable():
        text = _CONTROLS.sub(" ", text)
    return text.strip()


class _People:
    """The addresses in one header block."""

    def __init__(self, values: _Values, allow_utf8_local_parts: bool, *, shortcuts: bool) -> None:
        self._values = values
        self._allow = allow_utf8_local_parts
        self._shortcuts = shortcuts

    def correspondents(self) -> _Correspondents:
        """Who sends the message, what a reader might take for that, and who gets the replies."""
        senders, reply_to = self._values.get("from", ()), self._values.get("reply-to", ())
        if self._shortcuts and len(senders) == 1 and len(reply_to) < 2:
            answers_to = reply_to[0] if reply_to else ""
            if len(senders[0]) + len(answers_to) <= _REMEMBERED:
                return _correspondents_again((senders[0], answers_to, self._allow))
        return *self._senders(), self._reply_to()

    def _senders(self) -> tuple[str, tuple[str, ...]]:
        """The stored form of the first sender, and every address that a reader might see in any From field."""
        candidates: list[Mailbox] = []
        others: list[Mailbox] = []
        for view in self._values.get("from", ()):
            found = mailbox.parse(view, shortcuts=self._shortcuts)
            candidates += found.mailboxes
            if found.doubtful:
                others += mailbox.lookalikes(view)
        for shown in candidates:
            usable = self._addresses([shown])
            if usable:
                alone = len(candidates) == 1 and not others
                return mailbox.with_name(shown.name, usable[0]), usable if alone else self._addresses(
                    candidates + others
                )
        raise Unusable(Fault.NO_FROM, "no usable From address")

    def recipients(self, key: str) -> tuple[str, ...]:
        """The addresses of all fields of that name."""
        views = self._values.get(key)
        if not views:
            return ()
        if self._shortcuts and len(views) == 1:
            address = mailbox.sole_address(views[0])
            if address is not None:
                return (address,)
        return self._addresses([each for view in views for each in self._mailboxes(view)])

    def _reply_to(self) -> tuple[str, ...]:
        """The addresses of Reply-To; those that can't be stored are left out."""
        found: dict[str, str] = {}
        for view in self._values.get("reply-to", ()):
            for each in self._mailboxes(view):
                try:
                    address = mailbox.address_of(each, allow_utf8_local_parts=self._allow)
                except BadAddress:
                    continue
                found.setdefault(address.lower(), address)
        return tuple(found.values())

    def _mailboxes(self, view: str) -> list[Mailbox]:
        return mailbox.parse(view, shortcuts=self._shortcuts).mailboxes

    def _addresses(self, mailboxes: list[Mailbox]) -> tuple[str, ...]:
        try:
            return mailbox.addresses(mailboxes, allow_utf8_local_parts=self._allow)
        except BadAddress as error:
            raise Unusable(Fault.UTF8_LOCAL_PART, "the local part of an address is not ASCII") from error


@memoised(entries=1024, octets=_REMEMBERED + 160)
def _correspondents_again(views: tuple[str, str, bool]) -> _Correspondents:
    """`_People.correspondents` for the views that one mail after another has: an application has few senders."""
    sender, reply_to, allow_utf8_local_parts = views
    people = _People({"from": [sender], "reply-to": [reply_to]}, allow_utf8_local_parts, shortcuts=True)
    return *people._senders(), people._reply_to()
