"""Claimed rows whose worker did not finish: they go back to the queue, or what became of them is recorded for it.

Where it is not known whether the provider has a mail, its row goes back with UNCLEAR in `provider_last_error_code`: the
next claim looks for an event before it is sent again (`known_to_provider`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeVar

import structlog

from relay.core import deadlines
from relay.core.errors import PostgresRefused, PostgresUnavailable
from relay.core.frozen import frozen
from relay.postgres.database import ConnectionLost, Database, Overran, Rejected
from relay.postgres.driver import Cursor
from relay.postgres.halving import cause_of, in_halves
from relay.postgres.waiting import Processing

log = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: What stands in `provider_last_error_code` and `provider_last_error_message` of a row that is `queued`, and that the
#: provider may have all the same.
UNCLEAR: Final = "DeliveryUnclear"
UNCLEAR_TEXT: Final = "it is not known whether the provider has the mail"
#: Seconds for the look at the events, which have no index over the mail in every installation.
TRUTH_SECONDS: Final = 60.0
#: Events that only the provider or a recipient of the mail can cause. No tracked links among them: a preview has those
#: too.
_PROOFS: Final = ("sent", "delivered", "bounced", "complained", "delivery_delayed")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: By the mark of the claim: a process that has claimed the row since keeps it.
_GIVE_BACK: Final = """
UPDATE emails e SET status = 'queued',
       provider_next_retry_at = clock_timestamp() + make_interval(secs => claimed.seconds),
       provider_last_error_code = CASE WHEN claimed.unclear THEN %(code)s ELSE e.provider_last_error_code END,
       provider_last_error_message = CASE WHEN claimed.unclear THEN %(text)s ELSE e.provider_last_error_message END
  FROM unnest(%(ids)s::uuid[], %(marks)s::timestamptz[], %(seconds)s::float8[], %(unclear)s::boolean[])
       AS claimed (id, mark, seconds, unclear)
 WHERE e.id = claimed.id AND e.status = 'processing' AND e.provider_last_attempted_at = claimed.mark"""

#: Each row in the version in which it was seen: whatever happened to it since, it is left alone.
_SEEN: Final = """
WITH left_behind AS (
  SELECT e.id FROM emails e JOIN unnest(%(ids)s::uuid[], %(versions)s::text[]) AS seen (id, version) ON e.id = seen.id
   WHERE e.status = 'processing' AND e.xmin::text = seen.version FOR UPDATE OF e SKIP LOCKED)
"""
_PUT_BACK: Final = f"""{_SEEN}
UPDATE emails e SET status = 'queued', provider_next_retry_at = clock_timestamp(),
       provider_last_error_code = %(code)s, provider_last_error_message = %(text)s
  FROM left_behind WHERE e.id = left_behind.id RETURNING e.id::text, e.status"""  # noqa: S608 - fixed texts
_SETTLE: Final = f"""{_SEEN}
UPDATE emails e SET status = 'sent', sent_at = coalesce(e.sent_at, now()), provider_next_retry_at = NULL,
       provider_dead_lettered_at = NULL, provider_last_error_code = NULL, provider_last_error_message = NULL
  FROM left_behind WHERE e.id = left_behind.id RETURNING e.id::text, e.status"""  # noqa: S608 - fixed texts

#: What no worker takes up by itself: old, and no process can be working on it.
HELD: Final = """
 status = 'processing' AND created_at <= clock_timestamp() - interval '24 hours'
 AND (provider_last_attempted_at IS NULL OR provider_last_attempted_at < clock_timestamp() - interval '15 minutes')"""
_LIST: Final = f"""
SELECT e.id::text, e.created_at, e.provider_last_attempted_at FROM emails e
 WHERE (e.status, e.created_at) >= ('processing', '-infinity') AND {HELD}
 ORDER BY e.status, e.created_at LIMIT %(most)s"""  # noqa: S608 - fixed texts
_ONE: Final = f"""
SELECT e.id::text, e.created_at, e.provider_last_attempted_at FROM emails e
 WHERE e.id = %(id)s AND {HELD}"""  # noqa: S608 - fixed texts
_RELEASE: Final = f"""
UPDATE emails e SET status = 'queued', provider_next_retry_at = clock_timestamp(), provider_last_error_code = NULL,
       provider_last_error_message = NULL
 WHERE e.id = %(id)s AND {HELD}"""  # noqa: S608 - fixed texts


@frozen
class Left:
    """A claim to give back. `mark`: as the claim wrote it; None: not known. `seconds`: until the row may leave."""

    email_id: str
    mark: datetime | None
    seconds: float
    #: Whether the provider may have the mail.
    unclear: bool


class Held(NamedTuple):
    """A row that no worker takes up by itself."""

    email_id: str
    created: datetime
    #: When it was claimed, where the claim says so.
    claimed: datetime | None


class LeftRows:
    """Every method raises PostgresUnavailable within about `deadline` seconds, if it doesn't say otherwise."""

    def __init__(self, database: Database, *, deadline: float = 5.0) -> None:
        self._database = database
        self._deadline = deadline

    def give_back(self, rows: Sequence[Left]) -> int:
        """Makes these rows `queued` again, no attempt used up, unless their claim is over. Returns how many."""
        values = {
            "ids": [row.email_id for row in rows],
            "marks": [row.mark for row in rows],
            "seconds": [row.seconds for row in rows],
            "unclear": [row.unclear for row in rows],
            "code": UNCLEAR,
            "text": UNCLEAR_TEXT,
        }
        return self._change(_GIVE_BACK, values)

    def put_back(self, rows: Sequence[Processing], *, refused: dict[str, str] | None = None) -> set[str]:
        """Makes rows `queued` again, as unclear, unless they have changed since they were seen, or are locked.

        Returns which. `refused`: gets the cause for each row that Postgres refuses, an SQLSTATE or the name of an
        error; where it is None, PostgresRefused is raised after the others have been changed.
        """
        return self._change_each(_PUT_BACK, {"code": UNCLEAR, "text": UNCLEAR_TEXT}, rows, refused)

    def settle(self, rows: Sequence[Processing], *, refused: dict[str, str] | None = None) -> set[str]:
        """Makes rows `sent` that the provider has, as an event says; otherwise as `put_back`."""
        return self._change_each(_SETTLE, {}, rows, refused)

    def known_to_provider(self, email_ids: Collection[str]) -> set[str]:
        """Of which of these mails an event says that the provider has it. Takes TRUTH_SECONDS at most."""

        def select(cursor: Cursor) -> set[str]:
            cursor.execute(
                "SELECT DISTINCT email_id::text FROM email_events"
                " WHERE email_id = ANY (%s::uuid[]) AND type = ANY (%s)",
                (list(email_ids), list(_PROOFS)),
            )
            return {email_id for (email_id,) in cursor.fetchall()}

        deadline = deadlines.after(TRUTH_SECONDS + self._deadline)
        try:
            connection = self._database.connect(deadline, statement_seconds=TRUTH_SECONDS)
            try:
                return self._database.run(connection, deadline, select)
            finally:
                connection.close()
        except Overran:
            log.error("truth_unknown", seconds=TRUTH_SECONDS)
            raise PostgresUnavailable() from None
        except ConnectionLost:
            raise PostgresUnavailable() from None
        except Rejected as rejected:
            log.error("query_rejected", sqlstate=rejected.sqlstate)
            raise PostgresUnavailable() from None

    def held(self, most: int, *, email_id: str | None = None) -> list[Held]:
        """The oldest rows that no worker takes up by itself: claimed, unfinished, made more than 24 hours ago.

        `email_id`: this one alone, if it is one of those.
        """

        def select(cursor: Cursor) -> list[Held]:
            cursor.execute(_LIST if email_id is None else _ONE, {"most": most, "id": email_id})
            return [Held(*row) for row in cursor.fetchall()]

        return self._use(select)

    def release(self, email_id: str) -> bool:
        """Makes one of those `queued`, to be sent whatever the provider has; False: it is none of those."""
        return self._change(_RELEASE, {"id": email_id}) > 0

    def _change(self, statement: str, values: dict[str, object]) -> int:
        def update(cursor: Cursor) -> int:
            cursor.execute(statement, values)
            return int(cursor.rowcount)

        return self._use(update)

    def _change_each(
        self,
        statement: str,
        values: Mapping[str, object],
        rows: Sequence[Processing],
        refused: dict[str, str] | None,
    ) -> set[str]:
        changed: set[str] = set()
        failed: list[Exception] = []

        def update(some: Sequence[Processing]) -> Sequence[Processing]:
            def run(cursor: Cursor) -> set[str]:
                cursor.execute(statement, {**values, **_versions(some)})
                return {email_id for email_id, status in cursor if status != "processing"}

            try:
                changed.update(self._database.use_shared(deadlines.after(self._deadline), run))
            except PostgresUnavailable as error:
                failed.append(error)
                raise
            return some

        def note(row: Processing, error: Exception) -> None:
            cause = cause_of(error)
            if refused is None:
                log.error("query_rejected", sqlstate=cause)
                failed.append(PostgresRefused())
            else:
                refused[row.email_id] = cause

        in_halves(rows, update, refused=note)
        if failed:
            raise failed[0]
        return changed

    def _use(self, work: Callable[[Cursor], _T]) -> _T:
        return self._database.use(deadlines.after(self._deadline), work)


def microseconds(mark: datetime) -> int:
    """A claim's mark as microseconds since 1970."""
    return (mark - _EPOCH) // timedelta(microseconds=1)


def mark_of(count: int) -> datetime:
    """The reverse of `microseconds`."""
    return _EPOCH + timedelta(microseconds=count)


def _versions(rows: Sequence[Processing]) -> dict[str, object]:
    return {"ids": [row.email_id for row in rows], "versions": [row.version for row in rows]}
