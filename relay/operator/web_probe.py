"""Each statement of the HTTP process's, carried out once by its own code in a transaction that is rolled back."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import orjson

from config.settings import Settings
from relay.operator.finding import Finding
from relay.operator.postgres_probe import RolledBack, Use, tested
from relay.postgres.database import Rejected
from relay.postgres.events import Events
from relay.postgres.schema_check import WEB_TABLES, WEB_UNIQUE


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """As `postgres_probe.tested`."""
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    use = Use("the process's", WEB_TABLES, WEB_UNIQUE, misses_hidden_rows=True)
    try:
        yield from tested(database, use, lambda: operations(database, seconds=seconds), seconds=seconds)
    finally:
        database.close()


def operations(database: RolledBack, *, seconds: float) -> Sequence[tuple[str, Callable[[], object]]]:
    """What each is called, and the operation: every method of the process's that asks Postgres."""
    events = Events(database, deadline=seconds)
    event = {
        "id": str(uuid.uuid4()),
        "user_id": "check",
        "email_id": str(uuid.uuid4()),
        "payload": {},
        "received_at": datetime.now(UTC).isoformat(),
    }
    click = orjson.dumps({**event, "type": "email.clicked", "domain_id": str(uuid.uuid4())})
    bounce = {**event, "type": "bounced", "source_id": f"check:{event['id']}", "recipients": ["to@check.invalid"]}
    told = orjson.dumps({**bounce, "reason": "bounced", "message_id": "check"})
    return (
        ("recording clicks", lambda: _asked(lambda: events.write_tracking([click]))),
        ("recording events of SES", lambda: _asked(lambda: events.write_ses([told]))),
    )


def _asked(operation: Callable[[], object]) -> None:
    try:
        operation()
    except Rejected as rejected:
        raise rejected.consequence() from None
