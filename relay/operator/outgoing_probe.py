"""Each statement of the delivery worker's, carried out once by its own code in a transaction that is rolled back.

They are about a row that is not there: what the role may do is looked at before the rows are. Whether row-level
security hides rows, the catalogue says.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from config.settings import Settings
from relay.core.errors import PostgresUnavailable
from relay.operator.causes import named_sqlstate, postgres_cause
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.operator.postgres_probe import RolledBack, refusals
from relay.postgres import schema_check
from relay.postgres.database import ConnectionLost, Database, Rejected
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.row_contents import RowContents
from relay.postgres.schema_check import DELIVERY_TABLES, DELIVERY_UNIQUE
from relay.postgres.sending_facts import MailAsked
from relay.postgres.sent_rows import Event
from relay.postgres.waiting import Processing, WaitingRows, Walk
from relay.postgres.webhook_deliveries import ClaimedDelivery, WebhookDeliveries, WebhookResult

#: Regions that are asked for at most.
_MAX_REGIONS: Final = 20


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """What is wrong, a line each; or one that says that nothing is. `seconds`: by then every answer has to be there."""
    deadline = time.monotonic() + seconds
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    hidden: list[str] = []
    try:
        connection = database.connect(deadline)
        version = connection.server_version // 10000
        problems = database.run(
            connection, deadline, lambda cursor: list(schema_check.problems(cursor, DELIVERY_TABLES, DELIVERY_UNIQUE))
        )
        hidden = database.run(connection, deadline, lambda cursor: schema_check.hidden_tables(cursor, DELIVERY_TABLES))
        connection.close()
        if not problems:
            problems = list(refusals(operations(database, seconds=seconds), database))
    except ConnectionLost as lost:
        problems = [postgres_cause(lost.__cause__)]
    except Rejected as rejected:
        problems = [f"the catalogue: {named_sqlstate(rejected.sqlstate)}"]
    finally:
        database.close()
    for problem in problems:
        yield Finding(FAIL, "database", problem)
    for table in hidden:
        yield Finding(WARN, "database", f"{table}: row-level security is on for this role, and may hide rows from it")
    if not problems and not hidden:
        tables = f"all {len(DELIVERY_TABLES)} tables as they should be"
        yield Finding(OK, "database", f"PostgreSQL {version}, {tables}, and every statement of the worker's works")


def regions(settings: Settings, *, seconds: float) -> list[str]:
    """The regions of the domains, most used first; none where that can't be asked."""
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    try:
        return database.use(time.monotonic() + seconds, _regions)
    except PostgresUnavailable:
        return []
    finally:
        database.close()


def _regions(cursor: object) -> list[str]:
    cursor.execute(  # type: ignore[attr-defined]  # psycopg2 has no types
        "SELECT region FROM domains GROUP BY region ORDER BY count(*) DESC, region LIMIT %s", (_MAX_REGIONS,)
    )
    return [region for (region,) in cursor.fetchall()]  # type: ignore[attr-defined]


def _walked(walk: Walk) -> None:
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
    code, text = "Check", "check"
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
        ("reading large mails", lambda: contents.read(email_id, _Unread())),
        ("looking up domains and suppressions", lambda: outgoing.facts(asked)),
        ("recording that a mail is sent", lambda: outgoing.sent(email_id, event)),
        ("recording that recipients are refused", lambda: outgoing.bounced(email_id, user, [event])),
        ("looking up who has a mail", lambda: outgoing.recipients_of(email_id, 1)),
        (
            "recording a further try",
            lambda: outgoing.retry(email_id, event, attempt=1, seconds=1.0, code=code, message=text),
        ),
        ("recording a failure", lambda: outgoing.fail(email_id, event, attempt=1, code=code, message=text)),
        ("recording a suppressed mail", lambda: outgoing.suppress(email_id, event)),
        ("recording an event", lambda: outgoing.record(email_id, user, event)),
        (
            "simulating a delivery",
            lambda: outgoing.simulate(email_id, user, status="bounced", events=[event], reason="bounced"),
        ),
        ("putting mails back", lambda: outgoing.put_back([email_id], 1.0)),
        ("looking for webhook deliveries", lambda: (webhooks.look(each=1, most=1), webhooks.look_at([email_id]))),
        ("claiming webhook deliveries", lambda: webhooks.claim([email_id])),
        ("reading events for webhooks", lambda: webhooks.payload(email_id)),
        ("recording webhook deliveries", lambda: webhooks.record([unknown_result])),
        ("repeating webhook deliveries", lambda: webhooks.retry(email_id, None)),
    )
