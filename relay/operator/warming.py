"""Fills Redis from Postgres, so that the first minute of traffic finds its answers there.

Consistent at every moment: a key's entry is complete when it appears, a user's list of suppressions replaces the one
from before in one step (relay.redis.suppression_lists), and whatever half a list leaves behind expires by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeVar

from relay.core.frozen import frozen
from relay.operator.outbox import Outbox
from relay.postgres.snapshot import Snapshot
from relay.redis import suppression_lists
from relay.redis.cache import Cache
from relay.redis.key_entries import key_commands
from relay.redis.suppression_lists import ListWriter

_T = TypeVar("_T")

#: How long a list is used by default, in seconds. Being old makes it slower, never wrong
#: (relay.redis.suppression_lists).
LIST_SECONDS: Final = 86_400


@frozen
class Selection:
    """What to warm."""

    keys: bool = True
    suppressions: bool = True
    #: One user's entries only.
    user_id: str | None = None
    #: Only keys that were used within this time.
    active_within: timedelta | None = None
    #: How long lists of suppressions are used, in seconds. Keys are kept no longer than contract section 4 allows.
    list_seconds: int = LIST_SECONDS
    #: Entries a second at most; None: as fast as it goes.
    rate: float | None = None
    #: Reads everything and writes nothing.
    dry_run: bool = False


@dataclass(slots=True)
class Summary:
    """What was written, or with `dry_run` would have been."""

    keys: int = 0
    lists: int = 0
    suppressions: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def entries(self) -> int:
        """Keys and suppressed addresses."""
        return self.keys + self.suppressions

    @property
    def rate(self) -> float:
        """Entries a second."""
        return self.entries / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Warming:
    """One run. `progress(what, done, total)` is called several times a second."""

    snapshot: Snapshot
    cache: Cache
    selection: Selection
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    summary: Summary = field(default_factory=Summary)
    _stopped: bool = False

    def stop(self) -> None:
        """Asks the run to end; fit for a signal handler."""
        self._stopped = True

    def run(self) -> Summary:
        """Warms what is selected. Returns what became of it, also when it was stopped.

        Raises RedisFailed, and PostgresUnavailable; `summary` has what had been written by then.
        """
        started = time.monotonic()
        outbox = Outbox(self.cache.link, discard=self.selection.dry_run)
        outbox.load(suppression_lists.SCRIPTS)
        pace = _EntryRate(self.selection.rate)
        try:
            if self.selection.keys:
                self._keys(outbox, pace)
            if self.selection.suppressions:
                self._lists(outbox, pace)
        finally:
            self.summary.seconds = time.monotonic() - started
        return self.summary

    def _keys(self, outbox: Outbox, pace: _EntryRate) -> None:
        select = (self.selection.user_id, self.selection.active_within)
        total = self.snapshot.count_api_keys(*select)
        for page in _paged(self.snapshot.api_keys(*select), 500):
            if self._stopped:
                self.summary.interrupted = True
                return
            for token_hash, record in page:
                for command in key_commands(token_hash, record):
                    outbox.put(command)
            outbox.settle()
            self.summary.keys += len(page)
            self.progress("keys", self.summary.keys, total)
            pace.keep(len(page))

    def _lists(self, outbox: Outbox, pace: _EntryRate) -> None:
        total = self.snapshot.count_suppressions(self.selection.user_id)
        for user_id, size, pages in self.snapshot.suppression_lists(self.selection.user_id):
            writer = ListWriter(outbox, user_id, size, self.selection.list_seconds)
            written = 0
            for page in pages:
                if self._stopped:
                    break
                writer.add(page)
                written += len(page)
                if size > written:
                    outbox.settle()  # so that what is shown as done is done
                self.progress("suppressions", self.summary.suppressions + written, total)
                pace.keep(len(page))
            if self._stopped:
                self.summary.interrupted = True
                writer.abandon()
                break
            writer.finish()
            self.summary.lists += 1
            self.summary.suppressions += written
        outbox.settle()


class _EntryRate:
    """Not more than so many entries a second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._started = time.monotonic()
        self._done = 0

    def keep(self, entries: int) -> None:
        self._done += entries
        if self._rate is not None:
            time.sleep(max(0.0, self._started + self._done / self._rate - time.monotonic()))


def _paged(items: Iterator[_T], size: int) -> Iterator[Sequence[_T]]:
    page: list[_T] = []
    for item in items:
        page.append(item)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page
