"""What large rows of `emails` hold, read piece by piece: a driver keeps a whole result, and a row may have 40 MB.

One statement makes the pieces of a value from one copy of it in the server. `substring` on the column itself would read
the whole value once more for each piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from relay.core import deadlines
from relay.core.frozen import frozen
from relay.postgres.database import Database
from relay.postgres.driver import Cursor
from relay.postgres.transaction import in_transaction

#: Octets of a text, and characters of Base64, that come in one row of a result.
_PIECE: Final = 262_144
#: Attachments of a row that are looked at: as many as the way in takes parts of a message at most. And characters of
#: what is said of them, with some for each of them.
MAX_ATTACHMENTS: Final = 100_000
MAX_ABOUT: Final = 10_000_000
_ABOUT_EACH: Final = 50
#: Attachments about which is read at a time.
_ENTRIES_AT_A_TIME: Final = 200
#: Seconds for all of a row, and for one statement: the first piece waits until the server has read the whole value.
_SECONDS: Final = 120.0
_STATEMENT_SECONDS: Final = 30

_BEGIN: Final = (
    f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"
)
#: The attachments that have a file name, with their number. OFFSET keeps the planner from computing one value twice.
_ENTRIES: Final = """
  FROM emails e
 CROSS JOIN LATERAL jsonb_array_elements(
       CASE WHEN jsonb_typeof(e.attachments) = 'array' THEN e.attachments ELSE '[]' END) WITH ORDINALITY AS a(entry, n)
 CROSS JOIN LATERAL (
       SELECT CASE WHEN jsonb_typeof(a.entry->'content') = 'string' THEN convert_to(a.entry->>'content', 'UTF8') END
           AS octets OFFSET 0) AS c"""
_NAMED: Final = "e.id = %(id)s AND jsonb_typeof(a.entry->'filename') = 'string'"


def _text_of(name: str, most: int) -> str:
    return f"CASE WHEN jsonb_typeof(a.entry->'{name}') = 'string' THEN left(a.entry->>'{name}', {most}) END"


_ABOUT: Final = f"""
DECLARE about NO SCROLL CURSOR FOR
SELECT a.n, {_text_of("filename", 4000)}, {_text_of("path", 10_000)}, {_text_of("content_type", 1000)},
       {_text_of("content_id", 1000)}, octet_length(c.octets)
{_ENTRIES} WHERE {_NAMED} ORDER BY a.n"""
_CONTENTS: Final = f"""
DECLARE contents NO SCROLL CURSOR FOR
SELECT a.n, p.start, substring(c.octets FROM p.start FOR {_PIECE})
{_ENTRIES}
 CROSS JOIN LATERAL generate_series(1, octet_length(c.octets), {_PIECE}) AS p(start)
 WHERE {_NAMED}"""  # noqa: S608 - fixed texts
_TEXT: Final = f"""
DECLARE contents NO SCROLL CURSOR FOR
SELECT 1, p.start, substring(c.octets FROM p.start FOR {_PIECE})
  FROM emails e
 CROSS JOIN LATERAL (SELECT convert_to(e.{{column}}, 'UTF8') AS octets OFFSET 0) AS c
 CROSS JOIN LATERAL generate_series(1, octet_length(c.octets), {_PIECE}) AS p(start)
 WHERE e.id = %(id)s"""  # noqa: S608 - fixed texts


@frozen
class StoredEntry:
    """One attachment of a row without its content: `octets` of Base64; None: it has none. `number`: where it stands."""

    number: int
    filename: str
    path: str | None
    content_type: str | None
    content_id: str | None
    octets: int | None


class RowGone(Exception):
    """There is no such row any more: it was deleted since it was claimed."""


class TooManyAttachments(Exception):
    """A row has more than MAX_ATTACHMENTS, or more than MAX_ABOUT is said of them."""


class Reader(Protocol):
    """Takes what a row holds: `begin`, then each text, then the contents of the attachments."""

    def begin(self) -> None:
        """Forgets what has been read: it begins, or begins anew where a connection was lost."""

    def text(self, column: str, pieces: Iterator[bytes]) -> None:
        """The column `text` or `html`, UTF-8."""

    def contents(self, pieces: Iterator[tuple[int, bytes]]) -> None:
        """The Base64 of attachments: number and characters of each piece, all of one behind each other."""


class RowContents:
    """Reads large rows. Every method raises PostgresUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def entries(self, email_id: str) -> list[StoredEntry]:
        """The attachments of a row. Raises TooManyAttachments."""

        def work(cursor: Cursor) -> list[StoredEntry]:
            return in_transaction(cursor, lambda: _entries(cursor, email_id), begin=_BEGIN)

        return self._database.use(deadlines.after(_SECONDS), work)

    def read(self, email_id: str, reader: Reader) -> None:
        """Gives a row to `reader`. What that raises goes through, and ends the reading. Raises RowGone.

        A row that is gone must not look like one whose texts are empty.
        """

        def given(cursor: Cursor) -> None:
            reader.begin()
            for column in ("text", "html"):
                statement = _TEXT.format(column=column)
                reader.text(column, (octets for _, octets in _pieces(cursor, statement, email_id)))
            reader.contents(_pieces(cursor, _CONTENTS, email_id))
            cursor.execute("SELECT FROM emails WHERE id = %s", (email_id,))
            if cursor.rowcount == 0:
                raise RowGone

        def work(cursor: Cursor) -> None:
            in_transaction(cursor, lambda: given(cursor), begin=_BEGIN)

        self._database.use(deadlines.after(_SECONDS), work)


def _entries(cursor: Cursor, email_id: str) -> list[StoredEntry]:
    cursor.execute(_ABOUT, {"id": email_id})
    entries: list[StoredEntry] = []
    said = 0
    while True:
        cursor.execute(f"FETCH {_ENTRIES_AT_A_TIME} FROM about")
        rows = cursor.fetchall()
        for number, filename, path, content_type, content_id, octets in rows:
            said += _ABOUT_EACH + sum(len(text) for text in (filename, path, content_type, content_id) if text)
            entries.append(
                StoredEntry(
                    number=number,
                    filename=filename,
                    path=path,
                    content_type=content_type,
                    content_id=content_id,
                    octets=octets,
                )
            )
        if len(entries) > MAX_ATTACHMENTS or said > MAX_ABOUT:
            raise TooManyAttachments
        if len(rows) < _ENTRIES_AT_A_TIME:
            return entries


def _pieces(cursor: Cursor, declaration: str, email_id: str) -> Iterator[tuple[int, bytes]]:
    """Number and octets of each piece, all of one value behind each other."""
    cursor.execute(declaration, {"id": email_id})
    number, wanted = 0, 1
    while True:
        cursor.execute("FETCH 1 FROM contents")
        row = cursor.fetchone()
        if row is None:
            break
        octets = bytes(row[2])
        # The statement has no ORDER BY for this order: it comes from the way in which the server joins.
        if row[1] != (wanted if row[0] == number else 1) or row[0] < number:
            raise AssertionError("pieces out of order")
        number, wanted = row[0], row[1] + len(octets)
        yield number, octets
    cursor.execute("CLOSE contents")
