"""What the relay needs of OpenSend's tables (contract section 3), and whether a database has it.

Nothing is written to find out: the catalogue knows columns, types, keys and what the role may do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from relay.core.frozen import frozen


@frozen
class Column:
    """One column as the relay uses it. `uses`: S(elect), I(nsert), U(pdate)."""

    type: str
    uses: str


def _columns(text: str) -> dict[str, Column]:
    """From lines of name, type, uses."""
    return {
        name: Column(type=kind, uses=uses) for name, kind, uses in (line.split() for line in text.strip().splitlines())
    }


TABLES: Final[Mapping[str, Mapping[str, Column]]] = {
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
        from                       varchar(512) I
        to                         jsonb        SI
        cc                         jsonb        SI
        bcc                        jsonb        SI
        reply_to                   jsonb        I
        subject                    text         SI
        html                       text         SI
        text                       text         SI
        status                     varchar(50)  S
        headers                    jsonb        I
        attachments                jsonb        I
        tags                       jsonb        I
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

#: (table, columns): a unique index over exactly these, and what is lost without it.
UNIQUE: Final = (
    ("emails", ("id",), "a row that is inserted again after a lost answer would be there twice"),
    (
        "emails",
        ("idempotency_key", "user_id"),
        "two mails with one idempotency key at the same time would both be sent",
    ),
)

_PRIVILEGES: Final = {"S": "SELECT", "I": "INSERT", "U": "UPDATE"}
#: Types that hold what the wanted one holds.
_KIN: Final = {
    "text": ("text", "varchar", "bpchar", "citext"),
    "varchar": ("text", "varchar", "bpchar", "citext"),
    "int4": ("int4", "int8"),
}

_COLUMNS_SQL: Final = """
SELECT a.attname, t.typname, CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 END,
       a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
       has_column_privilege(a.attrelid, a.attnum, 'SELECT'),
       has_column_privilege(a.attrelid, a.attnum, 'INSERT'),
       has_column_privilege(a.attrelid, a.attnum, 'UPDATE')
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped"""

_UNIQUE_SQL: Final = """
SELECT array_agg(a.attname::text ORDER BY a.attname)
  FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
 WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indexprs IS NULL
 GROUP BY i.indexrelid"""


@frozen
class _Found:
    type: str
    limit: int | None
    must_be_given: bool
    privileges: frozenset[str]


def problems(cursor: Any) -> Iterator[str]:
    """What stands in the way of the relay in this database, a line each; nothing when all is well.

    Tables are looked up as the relay's own statements find them, by the role's search_path. Raises psycopg2.Error.
    """
    cursor.execute("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'")
    if cursor.fetchone()[0]:
        yield "is read-only: a replica, or a role that may not write"
    cursor.execute("SELECT current_setting('server_encoding')")
    encoding = cursor.fetchone()[0]
    if encoding != "UTF8":
        yield f"is encoded in {encoding}, should be UTF8: mails with other characters would be refused"
    for table, columns in TABLES.items():
        found = _found_columns(cursor, table)
        if not found:
            yield f"{table}: there is no such table"
            continue
        for name, column in columns.items():
            yield from _column_problems(f"{table}.{name}", column, found.get(name))
        if any("I" in column.uses for column in columns.values()):
            for name, other in found.items():
                if other.must_be_given and "I" not in columns.get(name, Column(type="", uses="")).uses:
                    yield f"{table}.{name}: not null and without a default, but the relay doesn't know it"
    for table, names, loss in UNIQUE:
        if list(names) not in _unique_sets(cursor, table):
            yield f"{table}: no unique index over {', '.join(names)}; {loss}"


def _found_columns(cursor: Any, table: str) -> dict[str, _Found]:
    cursor.execute(_COLUMNS_SQL, (table,))
    return {
        name: _Found(
            kind, limit, must_be_given, frozenset(letter for letter, has in zip("SIU", may, strict=True) if has)
        )
        for name, kind, limit, must_be_given, *may in cursor.fetchall()
    }


def _unique_sets(cursor: Any, table: str) -> list[list[str]]:
    cursor.execute(_UNIQUE_SQL, (table,))
    return [names for (names,) in cursor.fetchall()]


def _column_problems(where: str, wanted: Column, found: _Found | None) -> Iterator[str]:
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
