"""Mails that are too large to be held, or whose attachments have to be fetched: read in pieces, composed in a file, and
sent from there.

    up to 4 MB       several at a time: a few hundred KB of memory each
    over that        one at a time in a process, since their HTML is held while links are looked for

The composing is done in a thread: it takes a second of CPU for 40 MB, for which all other mails would wait otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, TypeVar

import gevent
from gevent.lock import BoundedSemaphore

from relay.core import deadlines
from relay.core.provider_limits import MAX_COMPOSED_OCTETS
from relay.core.supervision import NativeThread
from relay.delivery.compose import Unsendable, content_of
from relay.delivery.content import Content, Held, Slice, Spool
from relay.delivery.fetch import fetch
from relay.delivery.outbound_http import Outbound, UnavailableError
from relay.delivery.parts import Bodies, Enclosure
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from relay.delivery.transfer import Base64Decoder, NotBase64
from relay.postgres.owner_limit import OwnerLimit
from relay.postgres.row_contents import MAX_ATTACHMENTS, RowContents, RowGone, StoredEntry, TooManyAttachments

_T = TypeVar("_T")

#: Octets above which a mail is handled alone.
ALONE_OCTETS: Final = 4_000_000
#: Seconds for which one waits for its turn, and how many do. The others are put back: their places are for small mails.
_TURN_SECONDS: Final = 45.0
_MOST_WAITING: Final = 2
#: Seconds in which all attachments of one mail must have begun to be fetched: no claim may grow old by that.
FETCHING_SECONDS: Final = 60.0
#: Attachments of one mail that are fetched at most: each is a request to whatever server a customer names.
MOST_FETCHED: Final = 100
#: Seconds for which a mail keeps its place where others fetch, so that those that take moments are not put back.
_FETCH_TURN_SECONDS: Final = 1.0


class Busy(Exception):
    """Other large mails are before this one, or others whose attachments are fetched."""


class LargeMails:
    """Brings what mails carry into files. `directory`: where; None is the system's temporary folder.

    `fetches`: mails at a time whose attachments are fetched, half of them of one user at most. How long that takes
    the servers of others decide, and a customer with several accounts must not take all places of a process by it.
    """

    def __init__(self, contents: RowContents, directory: str | None, *, fetches: int) -> None:
        self._contents = contents
        self._directory = directory
        self._fetches = BoundedSemaphore(fetches)
        self._fetches_of_one = OwnerLimit(max(1, fetches // 2))
        self._alone = BoundedSemaphore(1)
        self._waiting = 0
        self._thread = NativeThread()
        self._outbound = Outbound()

    @contextmanager
    def opened(self, email: OutgoingEmail) -> Iterator[tuple[Bodies, Spool]]:
        """What a mail carries, and a spool for what is made of it, until the end of the block.

        Raises Busy, NoRoom, Unsendable, RefusedUrlError, UnavailableError and PostgresUnavailable.
        """
        with ExitStack() as stack:
            alone = email.stored_octets > ALONE_OCTETS
            if alone:
                stack.enter_context(self._turn())
            spool = stack.enter_context(Spool(self._directory))
            entries = self._entries(email) if email.large else []
            attachments = [_about(entry) for entry in entries] if email.large else email.attachments
            found = self._fetched(email.user_id, attachments, spool)
            octets = spool.size + max(email.stored_octets, sum(entry.octets or 0 for entry in entries))
            if not alone and octets > ALONE_OCTETS:
                stack.enter_context(self._turn())
            text: Content = Held(email.text.encode("utf-8", "replace"))
            html: Content = Held(email.html.encode("utf-8", "replace"))
            if email.large:
                reading = _RowReader(spool, entries)
                try:
                    self._contents.read(email.id, reading)
                except RowGone:
                    raise UnavailableError("RowGone") from None
                text, html = reading.texts["text"], reading.texts["html"]
                found |= {place: reading.of(entry) for place, entry in enumerate(entries) if entry.octets is not None}
            enclosures = [
                Enclosure(about, found[place] if place in found else content_of(about))
                for place, about in enumerate(attachments)
            ]
            yield Bodies(text=text, html=html, enclosures=enclosures), stack.enter_context(Spool(self._directory))

    def in_thread(self, work: Callable[[], _T]) -> _T:
        """What `work()` returns or raises. It runs in a thread, and may use nothing but files and memory."""
        return self._thread.run(work)

    def _fetched(
        self, user_id: str | None, attachments: Sequence[OutgoingAttachment], spool: Spool
    ) -> dict[int, Content]:
        """The contents that paths name, by the attachments' places. As `opened`."""
        named = sum(attachment.content is None and attachment.path is not None for attachment in attachments)
        if not named:
            return {}
        if named > MOST_FETCHED:
            raise Unsendable("TooManyAttachments", f"more than {MOST_FETCHED} attachments would have to be fetched")
        until = deadlines.after(_FETCH_TURN_SECONDS)
        with self._fetches_of_one.place(user_id, until) as granted:
            if not granted or not self._fetches.acquire(timeout=deadlines.seconds_left(until)):
                raise Busy
            try:
                return _fetched(attachments, spool, self._outbound)
            finally:
                self._fetches.release()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._alone.locked() and self._waiting >= _MOST_WAITING:
            raise Busy
        self._waiting += 1
        try:
            if not self._alone.acquire(timeout=_TURN_SECONDS):
                raise Busy
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._alone.release()

    def _entries(self, email: OutgoingEmail) -> list[StoredEntry]:
        try:
            return self._contents.entries(email.id)
        except TooManyAttachments:
            reason = f"there are more than {MAX_ATTACHMENTS} attachments, or their names take more than 10 MB"
            raise Unsendable("TooManyAttachments", reason) from None


def _about(entry: StoredEntry) -> OutgoingAttachment:
    path = entry.path if entry.octets is None else None
    return OutgoingAttachment(
        filename=entry.filename, content=None, path=path, content_type=entry.content_type, content_id=entry.content_id
    )


def _fetched(attachments: Sequence[OutgoingAttachment], spool: Spool, outbound: Outbound) -> dict[int, Content]:
    """The contents that paths name, by the attachments' places. Raises RefusedUrlError and UnavailableError."""
    left = MAX_COMPOSED_OCTETS * 3 // 4 - sum(len(attachment.content or "") * 3 // 4 for attachment in attachments)
    until = time.monotonic() + FETCHING_SECONDS
    found: dict[int, Content] = {}
    for place, attachment in enumerate(attachments):
        if attachment.content is None and attachment.path is not None:
            if time.monotonic() > until:
                raise UnavailableError("TimeoutError")
            start = spool.size
            fetch(attachment.path, max(0, left - start), spool.write, outbound)
            found[place] = spool.since(start)
    return found


class _RowReader:
    """Puts what a row holds into a spool, decoded; see `relay.postgres.row_contents.Reader`."""

    def __init__(self, spool: Spool, entries: Sequence[StoredEntry]) -> None:
        self._spool = spool
        #: What was in the spool before stays.
        self._start = spool.size
        self._numbers = frozenset(entry.number for entry in entries if entry.octets is not None)
        self.texts: dict[str, Slice] = {}
        self._found: dict[int, Slice] = {}

    def of(self, entry: StoredEntry) -> Slice:
        """What was read of an attachment. Raises UnavailableError where the row has another content by now."""
        if not entry.octets:
            return self._spool.since(self._spool.size)
        if entry.number not in self._found:
            raise UnavailableError("RowChanged")
        return self._found[entry.number]

    def begin(self) -> None:
        """See Reader."""
        self._spool.cut(self._start)
        self.texts.clear()
        self._found.clear()

    def text(self, column: str, pieces: Iterator[bytes]) -> None:
        """See Reader."""
        start = self._spool.size
        for octets in pieces:
            self._write(octets)
        self.texts[column] = self._spool.since(start)

    def contents(self, pieces: Iterator[tuple[int, bytes]]) -> None:
        """See Reader."""
        number, start, decoder = 0, self._spool.size, Base64Decoder()
        for piece_number, characters in pieces:
            if piece_number != number:
                self._end(number, start, decoder)
                number, start, decoder = piece_number, self._spool.size, Base64Decoder()
            self._write(decoder.decode(characters))
            gevent.sleep(0)
        self._end(number, start, decoder)

    def _end(self, number: int, start: int, decoder: Base64Decoder) -> None:
        try:
            self._write(decoder.end())
        except NotBase64:
            raise Unsendable("BadAttachment", "an attachment's content is not Base64") from None
        if number in self._numbers:
            self._found[number] = self._spool.since(start)

    def _write(self, octets: bytes) -> None:
        self._spool.write(octets)
        if self._spool.size - self._start > MAX_COMPOSED_OCTETS:
            raise Unsendable("MessageTooLarge", "the mail is larger than 40 MB once it is encoded")
