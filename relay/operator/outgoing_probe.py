"""Each statement of the delivery worker's, carried out once by its own code in a transaction that is rolled back.

They are about a row that is not there: what the role may do is looked at before the rows are. Whether row-level
security hides rows, the catalogue says.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from config.settings import Settings
from relay.core.errors import PostgresUnavailable
from relay.operator.finding import Finding
from relay.operator.postgres_probe import RolledBack, Use, tested
from relay.postgres.closed_rows import BouncedRow, UnsentRow
from relay.postgres.database import Database
from relay.postgres.driver import Cursor
from relay.postgres.failed_rows import FailedRow
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.row_contents import RowContents, RowGone
from relay.postgres.schema_check import DELIVERY_TABLES, DELIVERY_UNIQUE
from relay.postgres.sending_facts import MailAsked
from relay.postgres.sent_rows import Event
from relay.postgres.waiting import Processing, Waiting, WaitingRows, Walk
from relay.postgres.webhook_deliveries import ClaimedDelivery, WebhookDeliveries, WebhookResult

#: Regions that are asked for at most.
_MAX_REGIONS: Final = 20


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """As `postgres_probe.tested`."""
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    use = Use("the worker's", DELIVERY_TABLES, DELIVERY_UNIQUE, misses_hidden_rows=True)
    try:
        yield from tested(database, use, lambda: operations(database, seconds=seconds), seconds=seconds)
    finally:
        database.close()


def regions(settings: Settings, *, seconds: float) -> list[str]:
    """The regions of the domains, most used first; none where that can't be asked."""
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    try:
        return database.use(time.monotonic() + seconds, _regions)
    except PostgresUnavailable:
        return []
    finally:
        database.close()


def _regions(cursor: Cursor) -> list[str]:
    cursor.execute(
        "SELECT region FROM domains GROUP BY region ORDER BY count(*) DESC, region LIMIT %s", (_MAX_REGIONS,)
    )
    return [region for (region,) in cursor.fetchall()]


def _walked(walk: Walk[Waiting]) -> None:
    try:
        walk.read(1)
    finally:
        walk.close()


def _unknown_result(delivery_id: str) -> WebhookResult:
    delivery = ClaimedDelivery(
        id=delivery_id,
        webhook_id=delivery_id,
        event_id=delivery_id,
        attempt=0,
        mark=datetime.now(UTC),
        url=None,
        webhook_status=None,
        secret=None,
        event_type=None,
        payload=None,
        payload_octets=0,
    )
    return WebhookResult(
        delivery=delivery,
        status="failed",
        attempt=0,
        attempted_at=None,
        status_code=None,
        response_body=None,
        seconds=None,
    )


def _read(contents: RowContents, email_id: str) -> None:
    with suppress(RowGone):  # there is none of this id
        contents.read(email_id, _Unread())


class _Unread:
    """Takes what a row holds, and keeps nothing of it; see `relay.postgres.row_contents.Reader`."""

    def begin(self) -> None:
        """See Reader."""

    def text(self, column: str, pieces: Iterator[bytes]) -> None:
        """See Reader."""
        deque(pieces, maxlen=0)

    def contents(self, pieces: Iterator[tuple[int, bytes]]) -> None:
        """See Reader."""
        deque(pieces, maxlen=0)


def operations(database: Database, *, seconds: float) -> Sequence[tuple[str, Callable[[], object]]]:
    """What each is called, and the operation: every method of the worker's that asks Postgres."""
    outgoing, contents = Outgoing(database, deadline=seconds), RowContents(database)
    waiting = WaitingRows(database, deadline=seconds)
    user, email_id = f"check:{uuid.uuid4()}", str(uuid.uuid4())
    asked = MailAsked(user, names=["check.invalid"], mailboxes=["to@check.invalid"])
    left = LeftRows(database, deadline=seconds)
    unknown = [Processing(email_id, version="0", ours=True, expired=True, recent=True, created=0.0, mark=0)]
    webhooks = WebhookDeliveries(database, deadline=seconds)
    unknown_result = _unknown_result(email_id)
    event = Event(type="delayed", source_id=f"check:{email_id}", payload={"email_id": email_id})
    mark = datetime.now(UTC)

    def failed(seconds: float | None) -> FailedRow:
        return FailedRow(email_id, mark, event, attempt=1, seconds=seconds, code="Check", message="check")

    def unsent(status: str) -> UnsentRow:
        return UnsentRow(email_id, mark, status=status, events=[event])

    return (
        ("claiming mails", lambda: outgoing.claim([email_id])),
        ("looking for waiting mails", lambda: (waiting.newest(1), waiting.oldest("scheduled", 1))),
        ("looking for claimed mails", lambda: waiting.processing(1)),
        ("walking through waiting mails", lambda: _walked(waiting.walk("queued"))),
        ("giving up old claims", lambda: (left.put_back(unknown), left.settle(unknown))),
        ("looking for events of mails", lambda: left.known_to_provider([email_id])),
        ("releasing held mails", lambda: (left.held(1, email_id=email_id), left.release(email_id))),
        ("failing held mails", lambda: outgoing.fail_held(email_id, "Check", "check", event)),
        ("looking at large mails", lambda: contents.entries(email_id)),
        ("reading large mails", lambda: _read(contents, email_id)),
        ("looking up domains and suppressions", lambda: outgoing.facts(asked)),
        ("recording that a mail is sent", lambda: outgoing.sent(email_id, event)),
        ("recording that recipients are refused", lambda: outgoing.ended(BouncedRow(email_id, [event]))),
        ("looking up who has a mail", lambda: outgoing.recipients_of(email_id, 1)),
        ("recording a further try", lambda: outgoing.ended(failed(1.0))),
        ("recording a failure", lambda: outgoing.ended(failed(None))),
        ("recording a suppressed mail", lambda: outgoing.ended(unsent("suppressed"))),
        ("recording an event", lambda: outgoing.record(email_id, event)),
        ("simulating a delivery", lambda: outgoing.ended(unsent("bounced"))),
        ("putting mails back", lambda: outgoing.put_back([email_id], 1.0)),
        ("looking for webhook deliveries", lambda: (webhooks.look(1), webhooks.look_at([email_id]))),
        ("claiming webhook deliveries", lambda: webhooks.claim([email_id])),
        ("reading events for webhooks", lambda: webhooks.payload(email_id)),
        ("recording webhook deliveries", lambda: webhooks.record([unknown_result])),
        ("repeating webhook deliveries", lambda: webhooks.retry(email_id, None)),
    )
