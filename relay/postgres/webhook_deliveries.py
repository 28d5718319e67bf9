"""All SQL of webhooks: what is due, claims, and what became of them (contract sections 3 and 9).

A claim sets `next_retry_at` to the end of its lease and leaves the status `pending`, which OpenSend's own dispatcher
honours. Nothing else is changed by it: a process that ends leaves a delivery that is due again, with the same attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeVar

import structlog

from relay.core import deadlines
from relay.core.errors import PostgresRefused, PostgresUnavailable
from relay.core.frozen import frozen
from relay.postgres.database import Database, Rejected
from relay.postgres.driver import Cursor, Row
from relay.postgres.halving import in_halves

_T = TypeVar("_T")
log = structlog.get_logger(__name__)

#: Seconds for which no other worker may claim a delivery: 5 for the claim's answer, 5 for the call, 5 for the record,
#: and a margin. So long the deliveries wait that a killed process has claimed, and no others.
LEASE_SECONDS: Final = 20.0
#: Octets of a payload that come with a claim; a longer one is read by itself.
HELD_OCTETS: Final = 65_536
#: Characters of a URL, and of a secret as it is stored, that come with a claim: more than a URL that is called has, and
#: than a secret that can be read. The columns have no bound, and a claim has a hundred rows.
HELD_CHARACTERS: Final = 8_001

#: What the planner may not do on the connections for webhooks: read the whole table for the few that are pending, by
#: statistics that are older than those that are not. `jit` takes longer than a look.
PLANNER: Final = ("enable_seqscan", "jit")

#: Pending deliveries that a look reads at most. Where there are more, it reads a part of the table.
READ_MOST: Final = 50_000
#: Blocks of that part (of 8 KB, as a rule with 75 deliveries), and those of the end of the table, where new deliveries
#: come as a rule: they are read with each part.
# perf: a part takes 20 ms and 50 where all of it is named from, all of 1.2 million deliveries 2.1 s:
# python -m scripts.benchmark.webhooks --backlog 1200000
PART_BLOCKS: Final = 512
TAIL_BLOCKS: Final = 128

_PENDING: Final = "d.status = 'pending' AND (d.next_retry_at IS NULL OR d.next_retry_at <= clock_timestamp())"
#: CASE: no index fits, or a planner with old statistics reads all that is pending for the few that are asked for.
_DUE: Final = """
 CASE d.status WHEN 'pending' THEN d.next_retry_at IS NULL OR d.next_retry_at <= clock_timestamp() ELSE false END"""

#: Of each webhook those that were never tried before the others, and the webhooks in turn.
_RANKED: Final = """
SELECT r.id::text, r.webhook_id::text, w.user_id FROM (
  SELECT * FROM (
    SELECT d.id, d.webhook_id, d.created_at,
           row_number() OVER (PARTITION BY d.webhook_id ORDER BY d.attempt > 0, d.created_at) AS place
      FROM {rows}) AS due
   WHERE place <= %(most)s ORDER BY place, created_at LIMIT %(most)s) AS r
  LEFT JOIN webhooks w ON w.id = r.webhook_id
 ORDER BY r.place, r.created_at"""
_LOOK: Final = _RANKED.format(rows=f"webhook_deliveries d WHERE {_PENDING}")

#: How many are pending, as far as it is counted, and the first of them by its place in the table: the entries of an
#: index that are equal are in this order. The table's blocks.
_COUNT: Final = """
SELECT count(*), split_part(trim(min(at)::text, '()'), ',', 1)::bigint,
       pg_relation_size('webhook_deliveries') / current_setting('block_size')::int
  FROM (SELECT ctid AS at FROM webhook_deliveries WHERE status = 'pending' LIMIT %(counted)s) AS pending"""
#: Whether the role may read where rows are: rights on columns leave that out unless they name it.
_MAY_READ_PLACES: Final = "SELECT has_column_privilege('webhook_deliveries', 'ctid', 'SELECT')"
_BLOCKS: Final = "SELECT pg_relation_size('webhook_deliveries') / current_setting('block_size')::int"
#: The largest number of a block; no table has it.
_NO_BLOCK: Final = 2**32 - 2
#: By their places in the table alone, whatever the planner knows of the rows (see _DUE), so that no more is read.
_BETWEEN: Final = f"""
SELECT id, webhook_id, attempt, created_at FROM webhook_deliveries d
 WHERE d.ctid >= %({{first}})s::tid AND d.ctid < %({{behind}})s::tid
   AND d.webhook_id <> ALL (%(but)s::uuid[]) AND {_DUE}"""  # noqa: S608 - fixed texts
_PIECE: Final = _RANKED.format(
    rows=f"""({_BETWEEN.format(first="first", behind="behind")}
 UNION ALL {_BETWEEN.format(first="tail", behind="end")}) AS d"""
)

_LOOK_AT: Final = f"""
SELECT d.id::text, d.webhook_id::text, w.user_id
  FROM webhook_deliveries d LEFT JOIN webhooks w ON w.id = d.webhook_id
 WHERE d.id = ANY (%(ids)s::uuid[]) AND {_DUE}"""  # noqa: S608 - fixed texts

#: `octet_length` of the text: what is small as it is stored, compressed, may be large.
_CLAIM: Final = f"""
WITH free AS (
  SELECT d.id FROM webhook_deliveries d WHERE d.id = ANY (%(ids)s::uuid[]) AND {_DUE} FOR UPDATE SKIP LOCKED),
claimed AS (
  UPDATE webhook_deliveries d SET next_retry_at = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM free WHERE d.id = free.id RETURNING d.id, d.webhook_id, d.event_id, d.attempt, d.next_retry_at)
SELECT c.id::text, c.webhook_id::text, c.event_id::text, c.attempt, c.next_retry_at,
       left(w.url, %(text)s), w.status, left(w.signing_secret_enc, %(text)s), e.type,
       CASE WHEN j.octets <= %(held)s THEN j.document END, coalesce(j.octets, 0)
  FROM claimed c LEFT JOIN webhooks w ON w.id = c.webhook_id LEFT JOIN email_events e ON e.id = c.event_id
  LEFT JOIN LATERAL (
    SELECT t.document, octet_length(t.document) AS octets FROM (SELECT e.payload::text AS document OFFSET 0) AS t
  ) AS j ON true"""  # noqa: S608 - fixed texts

#: A result counts where the row is as the claim left it. A success counts wherever the delivery is still open.
#: A row that another transaction holds is passed over. It returns the ids that need not be recorded again.
_RECORD: Final = """
WITH results AS (
SELECT * FROM unnest(%(ids)s::uuid[], %(marks)s::timestamptz[], %(statuses)s::text[], %(attempts)s::int[],
                     %(times)s::timestamptz[], %(codes)s::int[], %(bodies)s::text[], %(seconds)s::float8[])
           AS r (id, mark, status, attempt, attempted_at, status_code, response_body, seconds)),
free AS (SELECT id FROM webhook_deliveries WHERE id = ANY (%(ids)s::uuid[]) FOR UPDATE SKIP LOCKED),
recorded AS (
UPDATE webhook_deliveries d
   SET status = r.status, attempt = r.attempt, attempted_at = coalesce(r.attempted_at, d.attempted_at),
       status_code = r.status_code, response_body = r.response_body,
       next_retry_at = clock_timestamp() + make_interval(secs => r.seconds)
  FROM results r JOIN free USING (id)
 WHERE d.id = r.id AND d.status = 'pending' AND (d.next_retry_at = r.mark OR r.status = 'success'))
SELECT id::text FROM results r
 WHERE id IN (SELECT id FROM free) OR NOT EXISTS (SELECT FROM webhook_deliveries w WHERE w.id = r.id)"""

#: Beyond the longest lease a delivery waits for its next attempt; below it, an attempt may be going on.
_RETRY: Final = """
UPDATE webhook_deliveries d SET status = 'pending', next_retry_at = NULL
 WHERE d.id = %(id)s::uuid AND CASE
   WHEN d.status = 'pending' THEN d.next_retry_at > clock_timestamp() + make_interval(secs => %(lease)s)
   WHEN %(requested)s::timestamptz IS NULL THEN d.status <> 'success'
   ELSE d.attempted_at IS NULL OR d.attempted_at < %(requested)s::timestamptz END"""


class Due(NamedTuple):
    """A delivery that may be made now."""

    delivery_id: str
    webhook_id: str
    #: Whose webhook it is; None where that is gone.
    user_id: str | None


@frozen
class ClaimedDelivery:
    """A delivery that is this process's until its lease ends."""

    id: str
    webhook_id: str
    event_id: str
    #: Attempts so far.
    attempt: int
    #: What the claim wrote into `next_retry_at`.
    mark: datetime
    #: Of the webhook; None where that is gone.
    url: str | None
    webhook_status: str | None
    secret: str | None
    #: Of the event; None where that is gone.
    event_type: str | None
    #: A JSON document; None where it has more than HELD_OCTETS.
    payload: str | None
    payload_octets: int


@frozen
class WebhookResult:
    """What became of a claimed delivery. `seconds`: until it is due again; None where it is not."""

    delivery: ClaimedDelivery
    status: str
    attempt: int
    attempted_at: datetime | None
    status_code: int | None
    response_body: str | None
    seconds: float | None


class WebhookDeliveries:
    """The rows of webhook_deliveries. Every method raises PostgresUnavailable within about `deadline` seconds."""

    def __init__(self, database: Database, *, deadline: float = 5.0) -> None:
        self._database = database
        self._deadline = deadline
        #: Asked once.
        self._may_read_places: bool | None = None

    def look(self, most: int) -> list[Due]:
        """What is due, so many at most; the webhooks in turn."""
        return [Due(*row) for row in self._rows(_LOOK, {"most": most})]

    def backlog(self) -> int | None:
        """The first block of the table that has a pending delivery, where more are pending than a look reads.

        None also for a role that may not read where rows are; it looks at all.
        """
        if self._may_read_places is None:
            ((self._may_read_places,),) = self._rows(_MAY_READ_PLACES, {})
        if not self._may_read_places:
            return None
        ((count, first, blocks),) = self._rows(_COUNT, {"counted": READ_MOST + 1})
        # A partitioned table has no blocks, its partitions have them; all of it is looked at.
        return int(first) if count > READ_MOST and blocks else None

    def look_at_part(self, first: int, most: int, but: Collection[str]) -> tuple[list[Due], int | None]:
        """What is due in a part of the table that begins with the block `first`, and at the table's end; so many at
        most, the webhooks in turn. `but`: webhooks that are left out. With the block that follows; None: it is the end.
        """

        def select(cursor: Cursor) -> tuple[list[Row], int]:
            cursor.execute(_BLOCKS)
            ((blocks,),) = cursor.fetchall()
            behind, tail = first + PART_BLOCKS, max(first + PART_BLOCKS, blocks - TAIL_BLOCKS)
            places = {"first": first, "behind": behind, "tail": tail, "end": _NO_BLOCK}
            values = {name: f"({block},0)" for name, block in places.items()}
            cursor.execute(_PIECE, {**values, "most": most, "but": list(but)})
            return cursor.fetchall(), blocks

        rows, blocks = self._use(select)
        behind = first + PART_BLOCKS
        return [Due(*row) for row in rows], behind if behind < blocks else None

    def look_at(self, ids: Collection[str]) -> list[Due]:
        """Those of these deliveries that are due."""
        return [Due(*row) for row in self._rows(_LOOK_AT, {"ids": list(ids)})]

    def claim(self, ids: Collection[str]) -> list[ClaimedDelivery]:
        """Claims those of these deliveries that are due and not claimed.

        One that Postgres refuses keeps no other from it: it is logged, and left out. Raises PostgresRefused where no
        other is claimed.
        """
        claimed: list[ClaimedDelivery] = []
        failed: list[PostgresUnavailable] = []

        def claim(some: Sequence[str]) -> Sequence[str]:
            values = {"ids": list(some), "lease": LEASE_SECONDS, "held": HELD_OCTETS, "text": HELD_CHARACTERS}

            def select(cursor: Cursor) -> list[Row]:
                cursor.execute(_CLAIM, values)
                return cursor.fetchall()

            try:
                rows = self._database.use_shared(deadlines.after(self._deadline), select)
            except PostgresUnavailable as error:
                failed.append(error)
                raise
            claimed.extend(map(_claimed, rows))
            return some

        def refused(_: str, error: Exception) -> None:
            log.error("query_rejected", sqlstate=error.sqlstate if isinstance(error, Rejected) else "")
            failed.append(PostgresRefused())

        in_halves(list(ids), claim, refused=refused)
        if failed and not claimed:
            raise failed[0]
        return claimed

    def payload(self, event_id: str) -> str | None:
        """The payload of an event, a JSON document; None: the event is gone."""
        rows = self._rows("SELECT payload::text FROM email_events WHERE id = %(id)s::uuid", {"id": event_id})
        return str(rows[0][0]) if rows else None

    def record(self, results: Sequence[WebhookResult]) -> set[str]:
        """Records what became of deliveries, in one statement. Returns the ids of those that are dealt with: the others
        are locked just now. Raises PostgresUnavailable, and Unstorable where one of them can't be stored.
        """
        values = {
            "ids": [result.delivery.id for result in results],
            "marks": [result.delivery.mark for result in results],
            "statuses": [result.status for result in results],
            "attempts": [result.attempt for result in results],
            "times": [result.attempted_at for result in results],
            "codes": [result.status_code for result in results],
            "bodies": [result.response_body for result in results],
            "seconds": [result.seconds for result in results],
        }
        return {delivery_id for (delivery_id,) in self._rows(_RECORD, values)}

    def retry(self, delivery_id: str, requested: datetime | None) -> None:
        """Has a delivery made once more, whatever became of it, and now.

        `requested`: when. One that has been attempted since is left alone, so that a repeated request does nothing; so
        is one that is being made. Without a time a success is left alone.
        """
        values = {"id": delivery_id, "requested": requested, "lease": LEASE_SECONDS}
        self._use(lambda cursor: cursor.execute(_RETRY, values))

    def _rows(self, statement: str, values: Mapping[str, object]) -> list[Row]:
        def select(cursor: Cursor) -> list[Row]:
            cursor.execute(statement, values)
            return cursor.fetchall()

        return self._use(select)

    def _use(self, work: Callable[[Cursor], _T]) -> _T:
        return self._database.use(deadlines.after(self._deadline), work)


def _claimed(row: Row) -> ClaimedDelivery:
    delivery_id, webhook_id, event_id, attempt, mark, url, webhook_status, secret, event_type, payload, octets = row
    return ClaimedDelivery(
        id=delivery_id,
        webhook_id=webhook_id,
        event_id=event_id,
        attempt=attempt,
        mark=mark,
        url=url,
        webhook_status=webhook_status,
        secret=secret,
        event_type=event_type,
        payload=payload,
        payload_octets=octets,
    )
