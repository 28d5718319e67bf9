"""The way from raw bytes to a `Message`."""

from __future__ import annotations

import re
from typing import Final

from relay.address import BadAddress
from relay.mail import content, control, encodedword, mailbox, stored_headers, structure
from relay.mail.header import Head
from relay.mail.mailbox import Mailbox
from relay.mail.message import Fault, Limits, Message, Unusable

DEFAULT_LIMITS: Final = Limits()

#: What SES needs of a message that is only a subject (contract section 3).
_EMPTY_BODY: Final = "\n"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")
_SPACES = re.compile(r"\s+")


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
    head = root.head
    people = _People(head, limits, shortcuts=shortcuts)
    sender, from_addresses = people.senders()
    to, cc, bcc = people.recipients("to"), people.recipients("cc"), people.recipients("bcc")
    reply_to = people.reply_to()
    idempotency_key, tags = control.idempotency_key(head), control.tags(head)
    headers, dropped = stored_headers.select(head.fields)
    body = content.read(raw, root, limits)
    return Message(
        sender=sender,
        from_addresses=from_addresses,
        to=to,
        cc=cc,
        bcc=bcc,
        reply_to=reply_to,
        subject=_subject(head),
        html=body.html,
        text=body.text or ("" if body.html else _EMPTY_BODY),
        headers=headers,
        attachments=body.attachments,
        message_id=_SPACES.sub("", head.first("message-id")) or None,
        idempotency_key=idempotency_key,
        tags=tags,
        dropped_headers=dropped,
        parser=parser,
    )


def _subject(head: Head) -> str:
    text = encodedword.decode(head.first("subject"))
    if not text.isprintable():
        text = _CONTROLS.sub(" ", text)
    return text.strip()


class _People:
    """The addresses in one header block."""

    def __init__(self, head: Head, limits: Limits, *, shortcuts: bool) -> None:
        self._head = head
        self._allow = limits.allow_utf8_local_parts
        self._shortcuts = shortcuts

    def senders(self) -> tuple[str, tuple[str, ...]]:
        """The stored form of the first sender, and every address that a reader might see in any From field."""
        shown: Mailbox | None = None
        candidates: list[Mailbox] = []
        for view in self._head.every("from"):
            found = mailbox.parse(view, shortcuts=self._shortcuts)
            candidates += found.mailboxes
            shown = shown or next((each for each in found.mailboxes if self._addresses([each])), None)
            if found.doubtful:
                candidates += mailbox.lookalikes(view)
        if shown is None:
            raise Unusable(Fault.NO_FROM, "no usable From address")
        return mailbox.with_name(shown.name, self._addresses([shown])[0]), self._addresses(candidates)

    def recipients(self, key: str) -> tuple[str, ...]:
        """The addresses of all fields of that name."""
        views = self._head.every(key)
        if not views:
            return ()
        return self._addresses([each for view in views for each in self._mailboxes(view)])

    def reply_to(self) -> tuple[str, ...]:
        """The addresses of Reply-To; those that can't be stored are left out."""
        found: dict[str, str] = {}
        for view in self._head.every("reply-to"):
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
