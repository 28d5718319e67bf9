"""Claims whose answer was lost: the statement was sent, and the connection broke before Postgres had said what it did.

Such a row may be `processing` with no worker that knows of it: it would wait until its lease is over, and count as a
mail that the provider may have. It certainly has not, so the row goes back to the queue as it was.

That a claim is this one, and not another process's, its mark says: its microseconds are the claim's `tag`, which this
process chose before it sent the statement, and uses for no other one of the next million.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg2

from relay.core import deadlines
from relay.core.errors import PostgresRefused, PostgresUnavailable
from relay.postgres.database import Database
from relay.postgres.driver import Cursor, Row

#: Microseconds of a second, which are the tags.
_TAGS: Final = 1_000_000
#: The last moment that has the tag as its microseconds.
MARK: Final = """
 date_trunc('second', clock_timestamp() - %(tag)s * interval '1 microsecond') + %(tag)s * interval '1 microsecond'"""
#: Claims that are remembered; those that go before that come back when their leases are over.
_MOST: Final = 1000
#: Seconds for which Postgres is asked again once it answers: until then it may carry out what it was sent before.
_STILL: Final = 60.0
#: The same seconds in the other direction: a mark is up to a second older than its claim, and clocks drift.
_MARGIN: Final = 5.0
#: Seconds for all of them together.
_SECONDS: Final = 5.0
#: Codes of a server that goes down: what it did before it does not say.
_GOING_DOWN: Final = ("08", "57P")

_GIVE_BACK: Final = """
UPDATE emails e SET status = 'queued', provider_next_retry_at = clock_timestamp()
 WHERE e.id = ANY (%(ids)s::uuid[]) AND e.status = 'processing'
   AND e.provider_last_attempted_at > clock_timestamp() - make_interval(secs => %(seconds)s)
   AND mod(extract(microseconds FROM e.provider_last_attempted_at)::int, 1000000) = %(tag)s
RETURNING e.id::text, e.status"""


@dataclass(slots=True)
class _Lost:
    ids: set[str]
    tag: int
    began: float
    #: When (monotonic) Postgres need not be asked any more; None: it has not answered yet.
    until: float | None = None


class ClaimAttempt:
    """One claim of some rows, which may be sent to Postgres more than once."""

    def __init__(self, lost_claims: LostClaims, ids: Iterable[str], tag: int) -> None:
        self._lost_claims = lost_claims
        self._ids = ids
        self._tag = tag
        self._began = time.monotonic()
        self._unanswered = 0

    def execute(self, cursor: Cursor, statement: str) -> list[Row]:
        """The rows of a claim. `statement`: with `ids`, and the tag in MARK."""
        self._unanswered += 1
        try:
            cursor.execute(statement, {"ids": list(self._ids), "tag": self._tag})
            rows: list[Row] = cursor.fetchall()
        except psycopg2.Error as error:
            if error.pgcode is not None and not error.pgcode.startswith(_GOING_DOWN):
                self._unanswered -= 1  # nothing was carried out
            raise
        self._unanswered -= 1
        return rows

    def end(self, claimed: Collection[str]) -> None:
        """There is nothing more to come. `claimed`: the rows that this process knows to be claimed."""
        if self._unanswered:
            left = {email_id.lower() for email_id in self._ids}.difference(claimed)
            self._lost_claims.note(_Lost(left, self._tag, self._began))


class LostClaims:
    """Those of one process."""

    def __init__(self, database: Database, *, deadline: float) -> None:
        self._database = database
        self._deadline = deadline
        self._next_tag = secrets.randbelow(_TAGS)
        self._lost: deque[_Lost] = deque(maxlen=_MOST)

    def attempt(self, ids: Iterable[str]) -> ClaimAttempt:
        """Rows are about to be claimed. `ClaimAttempt.end` has to follow."""
        self._next_tag = (self._next_tag + 1) % _TAGS
        return ClaimAttempt(self, ids, self._next_tag)

    def note(self, lost: _Lost) -> None:
        """For ClaimAttempt."""
        self._lost.append(lost)

    def give_back(self) -> int:
        """Makes those rows `queued` again; how many were. Raises PostgresUnavailable where some are left to be asked
        for, because Postgres is away or others hold them.
        """
        count = 0
        until = time.monotonic() + _SECONDS
        failed: PostgresUnavailable | None = None
        for lost in list(self._lost):
            if time.monotonic() > until:
                break
            try:
                given = self._give_back(lost)
            except PostgresRefused:
                self._lost.remove(lost)  # they come back as claims that were left behind
                continue
            except PostgresUnavailable as error:
                failed = error
                continue
            count += len(given)
            lost.ids -= given
            now = time.monotonic()
            lost.until = lost.until or now + _STILL
            if not lost.ids or now > lost.until:
                self._lost.remove(lost)
        if failed is not None:
            raise failed
        return count

    def _give_back(self, lost: _Lost) -> set[str]:
        values = {"ids": list(lost.ids), "tag": lost.tag, "seconds": time.monotonic() - lost.began + _MARGIN}

        def update(cursor: Cursor) -> Sequence[Row]:
            cursor.execute(_GIVE_BACK, values)
            return cursor.fetchall()

        rows = self._database.use(deadlines.after(self._deadline), update)
        return {email_id for email_id, status in rows if status != "processing"}
