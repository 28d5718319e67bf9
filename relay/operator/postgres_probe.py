"""Each statement of the relay's, carried out once by the code of mail's own path, in a transaction that is rolled back.

The catalogue says what a role may do with a column; what a policy, a trigger, a rule or a pooler makes of a statement,
the statement alone can say.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import psycopg2.extensions
from psycopg2.sql import Composable

from config.settings import Settings
from relay.core.errors import PostgresUnavailable, Unstorable
from relay.core.frozen import frozen
from relay.core.records import EmailRow
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.postgres import schema_check
from relay.postgres.causes import named_sqlstate, postgres_cause
from relay.postgres.database import ConnectionLost, Database, Rejected
from relay.postgres.driver import Connection, Cursor
from relay.postgres.store import Store

_T = TypeVar("_T")

_MAILBOX: Final = "to@check.invalid"


class RolledBack(Database):
    """A database that keeps nothing of what is done with it."""

    def __init__(self, url: str, *, statement_seconds: float) -> None:
        """`statement_seconds`: as Database has it."""
        super().__init__(url, statement_seconds=statement_seconds, idle_limit=1)
        #: Why statements were refused: SQLSTATEs.
        self.refusals: list[str] = []

    def connect(
        self, deadline: float, *, statement_seconds: float | None = None, lock_seconds: float | None = None
    ) -> Connection:
        """As Database has it."""
        connection = super().connect(deadline, statement_seconds=statement_seconds, lock_seconds=lock_seconds)
        connection.cursor_factory = _NothingStays
        return connection

    def run(self, connection: Connection, deadline: float, work: Callable[[Cursor], _T]) -> _T:
        """As Database has it."""
        try:
            return super().run(connection, deadline, work)
        except Rejected as rejected:
            self.refusals.append(rejected.sqlstate)
            raise


class _NothingStays(psycopg2.extensions.cursor):
    """A cursor that rolls back each statement, and each transaction that its user would commit."""

    def execute(
        self, query: str | bytes | Composable, vars: Sequence[object] | Mapping[str, object] | None = None
    ) -> None:
        """As psycopg2 has it."""
        if query == "COMMIT":
            query = "ROLLBACK"
        text = query if isinstance(query, bytes) else str(query).encode()
        begun = self.connection.info.transaction_status != psycopg2.extensions.TRANSACTION_STATUS_IDLE
        if begun or text.lstrip()[:5].upper() == b"BEGIN":
            super().execute(query, vars)
            return
        with self.connection.cursor(cursor_factory=psycopg2.extensions.cursor) as around:
            around.execute("BEGIN")
            try:
                super().execute(query, vars)
            finally:
                if not self.connection.closed:
                    around.execute("ROLLBACK")


#: What each operation is called, and the operation.
Operations = Iterable[tuple[str, Callable[[], object]]]


@frozen
class Use:
    """What a program does with the database."""

    #: `the relay's`: whose statements they are.
    whose: str
    tables: schema_check.Tables
    unique: Sequence[schema_check.Unique]
    #: Whether rows that row-level security hides are rows that it would miss.
    misses_hidden_rows: bool


def tested(
    database: RolledBack, use: Use, operations: Callable[[], Operations], *, seconds: float
) -> Iterator[Finding]:
    """What is wrong, a line each; or one that says that nothing is. `seconds`: by then every answer has to be there.

    `operations` are made, and carried out on `database`, where the catalogue says that they could work.
    """
    deadline = time.monotonic() + seconds
    hidden: list[str] = []
    try:
        connection = database.connect(deadline)
        version = connection.server_version // 10000
        problems = database.run(
            connection, deadline, lambda cursor: list(schema_check.problems(cursor, use.tables, use.unique))
        )
        if use.misses_hidden_rows:
            hidden = database.run(connection, deadline, lambda cursor: schema_check.hidden_tables(cursor, use.tables))
        connection.close()
        if not problems:
            problems = list(refusals(operations(), database))
    except ConnectionLost as lost:
        problems = [postgres_cause(lost.__cause__)]
    except Rejected as rejected:
        problems = [f"the catalogue: {named_sqlstate(rejected.sqlstate)}"]
    for problem in problems:
        yield Finding(FAIL, "database", problem)
    for table in hidden:
        yield Finding(WARN, "database", f"{table}: row-level security is on for this role, and may hide rows from it")
    if not problems and not hidden:
        tables = f"all {len(use.tables)} tables as they should be"
        yield Finding(OK, "database", f"PostgreSQL {version}, {tables}, and every statement of {use.whose} works")


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """As `tested`, for the relay."""
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    store = Store(settings.database_url, deadline=seconds, database=database)
    use = Use("the relay's", schema_check.TABLES, schema_check.UNIQUE, misses_hidden_rows=False)
    try:
        yield from tested(database, use, lambda: operations(store), seconds=seconds)
    finally:
        store.close()


def refusals(operations: Operations, database: RolledBack) -> Iterator[str]:
    """Carries out each operation on `database`; what was refused, a line each."""
    for name, operation in operations:
        database.refusals.clear()
        try:
            operation()
        except (PostgresUnavailable, Unstorable):
            said = [named_sqlstate(sqlstate) for sqlstate in dict.fromkeys(database.refusals)]
            yield f"{name}: {', '.join(said) or postgres_cause(None)}"
            if not said:
                return  # the others would wait as long


def operations(store: Store) -> Sequence[tuple[str, Callable[[], object]]]:
    """What each is called, and the operation."""
    user = f"check:{uuid.uuid4()}"
    unknown = [str(uuid.uuid4())]
    payload = {"reason": "recipient_suppressed", "recipients": []}
    return (
        ("looking up API keys", lambda: store.find_api_keys(["0" * 64])),
        ("looking up suppressions", lambda: store.find_suppressions(user, [_MAILBOX])),
        ("storing a mail", lambda: store.insert([_row(user)], [_MAILBOX])),
        ("storing a mail to many", lambda: store.insert([_row(user, "check"), _row(user), _row(user)], [_MAILBOX])),
        ("looking up idempotency keys", lambda: store.holder_of_key(user, "check")),
        ("releasing idempotency keys", lambda: store.release_key(unknown[0], user, "check")),
        ("looking up parts of a mail", lambda: store.find_parts(user, "check", _row(user, "check"))),
        ("looking up mails", lambda: store.rows_exist(unknown)),
        ("looking for mails without a job", lambda: (store.queued(unknown), store.overdue(timedelta(days=3650), 1))),
        ("writing last_used_at", lambda: store.touch_api_keys(unknown)),
        ("recording suppressed mails", lambda: store.record_suppressed(user, payload)),
    )


def _row(user: str, key: str | None = None) -> EmailRow:
    return EmailRow(
        id=str(uuid.uuid4()),
        user_id=user,
        sender="Check <from@check.invalid>",
        to=(_MAILBOX,),
        cc=(),
        bcc=(),
        reply_to=(),
        subject="Check",
        html="",
        text="Rolled back\n",
        headers={},
        attachments=(),
        tags=(),
        idempotency_key=key,
    )
