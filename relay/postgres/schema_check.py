"""What relay, delivery worker and HTTP process need of OpenSend's tables (contract section 3), and whether it is there.

Nothing is written to find out: the catalogue knows columns, types, keys and what the role may do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from relay.core.frozen import frozen
from relay.postgres.driver import Cursor


@frozen
class Column:
    """One column as it is used here. `uses`: S(elect), I(nsert), U(pdate)."""

    type: str
    uses: str


Tables = Mapping[str, Mapping[str, Column]]
#: Table, columns, and what is lost without a unique index over exactly these.
Unique = tuple[str, tuple[str, ...], str]


def _columns(text: str) -> dict[str, Column]:
    """From lines of name, type, uses."""
    return {
        name: Column(type=kind, uses=uses) for name, kind, uses in (line.split() for line in text.strip().splitlines())
    }


#: What the relay uses.
TABLES: Final[Tables] = {
    "api_keys": _columns("""
        id            uuid         S
        token_hash    text         S
        permission    varchar(50)  S
        domain        varchar(255) S
        last_used_at  timestamptz  SU
        user_id       text         S
    """),
    "domains": _columns("""
        id            uuid         S
        name          varchar(255) S
        user_id       text         S
    """),
    "emails": _columns("""
        id                         uuid         SI
        from                       varchar(512) SI
        to                         jsonb        SI
        cc                         jsonb        SI
        bcc                        jsonb        SI
        reply_to                   jsonb        SI
        subject                    text         SI
        html                       text         SI
        text                       text         SI
        status                     varchar(50)  S
        headers                    jsonb        SI
        attachments                jsonb        SI
        tags                       jsonb        SI
        scheduled_at               timestamptz  S
        created_at                 timestamptz  S
        user_id                    text         SI
        idempotency_key            varchar(256) SIU
        provider_retry_count       int4         S
        provider_next_retry_at     timestamptz  S
    """),
    "email_suppressions": _columns("""
        user_id       text         S
        email         varchar(512) S
        reason        varchar(50)  S
    """),
    "email_events": _columns("""
        id            uuid         SI
        type          varchar(50)  I
        payload       jsonb        I
        user_id       text         I
        received_at   timestamptz  I
    """),
    "webhooks": _columns("""
        id            uuid         S
        event_types   jsonb        S
        status        varchar(50)  S
        user_id       text         S
    """),
    "webhook_deliveries": _columns("""
        id            uuid         I
        webhook_id    uuid         I
        event_id      uuid         I
        attempt       int4         I
        status        varchar(50)  I
        created_at    timestamptz  I
    """),
}

UNIQUE: Final[Sequence[Unique]] = (
    ("emails", ("id",), "a row that is inserted again after a lost answer would be there twice"),
    (
        "emails",
        ("idempotency_key", "user_id"),
        "two mails with one idempotency key at the same time would both be sent",
    ),
)

#: What the delivery worker uses.
DELIVERY_TABLES: Final[Tables] = {
    "emails": _columns("""
        xmin                        xid          S
        id                          uuid         S
        from                        varchar(512) S
        to                          jsonb        S
        cc                          jsonb        S
        bcc                         jsonb        S
        reply_to                    jsonb        S
        subject                     text         S
        html                        text         S
        text                        text         S
        status                      varchar(50)  SU
        headers                     jsonb        S
        attachments                 jsonb        S
        scheduled_at                timestamptz  S
        sent_at                     timestamptz  SU
        created_at                  timestamptz  S
        user_id                     text         S
        provider_retry_count        int4         SU
        provider_last_attempted_at  timestamptz  SU
        provider_next_retry_at      timestamptz  SU
        provider_dead_lettered_at   timestamptz  U
        provider_last_error_code    varchar(255) SU
        provider_last_error_message text         SU
    """),
    "domains": _columns("""
        id                         uuid         S
        name                       varchar(255) S
        region                     varchar(50)  S
        track_clicks               bool         S
        track_opens                bool         S
        tracking_subdomain         varchar(255) S
        ses_configuration_set_name varchar(255) S
        created_at                 timestamptz  S
        user_id                    text         S
    """),
    "email_suppressions": _columns("""
        id                uuid         I
        user_id           text         SI
        email             varchar(512) SI
        reason            varchar(50)  SIU
        source_event_id   varchar(255) IU
        source_message_id varchar(255) IU
        source_email_id   uuid         IU
        metadata          jsonb        IU
        suppressed_at     timestamptz  I
        updated_at        timestamptz  IU
    """),
    "email_events": _columns("""
        id            uuid         SI
        email_id      uuid         SI
        source_id     varchar(255) SI
        type          varchar(50)  SI
        payload       jsonb        SI
        user_id       text         SI
        received_at   timestamptz  I
    """),
    "webhooks": _columns("""
        id                 uuid         S
        url                text         S
        event_types        jsonb        S
        status             varchar(50)  S
        signing_secret_enc text         S
        user_id            text         S
    """),
    "webhook_deliveries": _columns("""
        id            uuid         SI
        webhook_id    uuid         SI
        event_id      uuid         SI
        attempt       int4         SIU
        status_code   int4         U
        response_body text         U
        status        varchar(50)  SIU
        attempted_at  timestamptz  SU
        next_retry_at timestamptz  SU
        created_at    timestamptz  SI
    """),
}

DELIVERY_UNIQUE: Final[Sequence[Unique]] = (
    ("email_events", ("source_id",), "an event that is recorded again after a lost answer would be there twice"),
    ("email_suppressions", ("email", "user_id"), "suppressed recipients could not be recorded"),
)

#: What the HTTP process uses.
WEB_TABLES: Final[Tables] = {
    "emails": _columns("""
        id            uuid         S
        status        varchar(50)  SU
        user_id       text         S
    """),
    "domains": _columns("""
        id            uuid         S
        track_clicks  bool         S
        track_opens   bool         S
        user_id       text         S
    """),
    "email_suppressions": _columns("""
        id                uuid         I
        user_id           text         SI
        email             varchar(512) SI
        reason            varchar(50)  SIU
        source_event_id   varchar(255) SIU
        source_message_id varchar(255) SIU
        source_email_id   uuid         SIU
        metadata          jsonb        SIU
        suppressed_at     timestamptz  I
        updated_at        timestamptz  IU
    """),
    "email_events": _columns("""
        id            uuid         SI
        email_id      uuid         I
        source_id     varchar(255) I
        type          varchar(50)  SI
        payload       jsonb        I
        user_id       text         SI
        received_at   timestamptz  I
    """),
    "webhooks": TABLES["webhooks"],
    "webhook_deliveries": TABLES["webhook_deliveries"],
}

WEB_UNIQUE: Final[Sequence[Unique]] = (
    ("email_events", ("id",), "a click that is recorded again after a lost answer would be there twice"),
    *DELIVERY_UNIQUE,
)

_PRIVILEGES: Final = {"S": "SELECT", "I": "INSERT", "U": "UPDATE"}
#: Types that hold what the expected one holds.
_KIN: Final = {
    "text": ("text", "varchar", "bpchar", "citext"),
    "varchar": ("text", "varchar", "bpchar", "citext"),
    "int4": ("int4", "int8"),
}

_COLUMNS_SQL: Final = """
SELECT a.attname, t.typname, CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 END,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attnum > 0,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT'),
       has_column_privilege(a.attrelid, a.attnum, 'INSERT'),
       has_column_privilege(a.attrelid, a.attnum, 'UPDATE')
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = to_regclass(%s) AND (a.attnum > 0 OR a.attname = 'xmin') AND NOT a.attisdropped"""

_UNIQUE_SQL: Final = """
SELECT array_agg(a.attname::text ORDER BY a.attname)
  FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
 WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indexprs IS NULL
 GROUP BY i.indexrelid"""


@frozen
class _FoundColumn:
    type: str
    limit: int | None
    must_be_given: bool
    privileges: frozenset[str]


def problems(cursor: Cursor, tables: Tables = TABLES, unique: Sequence[Unique] = UNIQUE) -> Iterator[str]:
    """What stands in the way of such a use of these tables, a line each; nothing when all is well.

    Tables are looked up as the relay's own statements find them, by the role's search_path. Raises psycopg2.Error.
    """
    cursor.execute("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'")
    ((read_only,),) = cursor.fetchall()
    if read_only:
        yield "is read-only: a replica, or a role that may not write"
    cursor.execute("SELECT current_setting('server_encoding')")
    ((encoding,),) = cursor.fetchall()
    if encoding != "UTF8":
        yield f"is encoded in {encoding}, should be UTF8: mails with other characters would be refused"
    columns_of = {table: _found_columns(cursor, table) for table in tables}
    if not any(columns_of.values()):
        yield "holds no OpenSend tables, or this role can't see them: run OpenSend's migrations first"
        return
    for table, columns in tables.items():
        found = columns_of[table]
        if not found:
            yield f"{table}: there is no such table"
            continue
        for name, column in columns.items():
            yield from _column_problems(f"{table}.{name}", column, found.get(name))
        if any("I" in column.uses for column in columns.values()):
            for name, other in found.items():
                if other.must_be_given and "I" not in columns.get(name, Column(type="", uses="")).uses:
                    yield f"{table}.{name}: not null, without a default, and unknown to the relay"
    for table, names, loss in unique:
        if list(names) not in _unique_sets(cursor, table):
            yield f"{table}: no unique index over {', '.join(names)}; {loss}"


def hidden_tables(cursor: Cursor, tables: Iterable[str]) -> list[str]:
    """Those of these tables of which row-level security may hide rows from the role."""
    cursor.execute(
        "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
        " AND row_security_active(to_regclass(name)) ORDER BY name",
        (list(tables),),
    )
    return [name for (name,) in cursor.fetchall()]


def _found_columns(cursor: Cursor, table: str) -> dict[str, _FoundColumn]:
    cursor.execute(_COLUMNS_SQL, (table,))
    return {
        name: _FoundColumn(
            kind, limit, must_be_given, frozenset(letter for letter, has in zip("SIU", may, strict=True) if has)
        )
        for name, kind, limit, must_be_given, *may in cursor.fetchall()
    }


def _unique_sets(cursor: Cursor, table: str) -> list[list[str]]:
    cursor.execute(_UNIQUE_SQL, (table,))
    return [names for (names,) in cursor.fetchall()]


def _column_problems(where: str, wanted: Column, found: _FoundColumn | None) -> Iterator[str]:
    if found is None:
        yield f"{where}: there is no such column"
        return
    wanted_type, _, wanted_limit = wanted.type.rstrip(")").partition("(")
    if found.type not in _KIN.get(wanted_type, (wanted_type,)):
        yield f"{where}: is {found.type}, should be {wanted.type}"
    elif "I" in wanted.uses and found.limit is not None and not (wanted_limit and found.limit >= int(wanted_limit)):
        yield f"{where}: holds {found.limit} characters, should be {wanted.type}"
    for letter in wanted.uses:
        if letter not in found.privileges:
            yield f"{where}: the role may not {_PRIVILEGES[letter]}"
