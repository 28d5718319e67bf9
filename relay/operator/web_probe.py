"""Each statement of the HTTP process's, carried out once by its own code in a transaction that is rolled back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import orjson

from config.settings import Settings
from relay.operator.causes import named_sqlstate, postgres_cause
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.operator.postgres_probe import RolledBack, refusals
from relay.postgres import schema_check
from relay.postgres.database import ConnectionLost, Rejected
from relay.postgres.events import Events
from relay.postgres.schema_check import WEB_TABLES, WEB_UNIQUE


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """What is wrong, a line each; or one that says that nothing is. `seconds`: by then every answer has to be there."""
    deadline = time.monotonic() + seconds
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    hidden: list[str] = []
    try:
        connection = database.connect(deadline)
        version = connection.server_version // 10000
        problems = database.run(
            connection, deadline, lambda cursor: list(schema_check.problems(cursor, WEB_TABLES, WEB_UNIQUE))
        )
        hidden = database.run(connection, deadline, lambda cursor: schema_check.hidden_tables(cursor, WEB_TABLES))
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
        tables = f"all {len(WEB_TABLES)} tables as they should be"
        yield Finding(OK, "database", f"PostgreSQL {version}, {tables}, and every statement of the process's works")


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
