"""`./scripts/look`: the rows of the relay that `./scripts/dev` has started, or one of them whole."""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/look instead.")

import argparse
import json
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final, TypeAlias

import psycopg2

from scripts.terminal import printable

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENT: Final = ROOT / ".dev" / "environment"
Row: TypeAlias = Mapping[str, object]

#: Characters of a value that are shown of one row.
_SHOWN: Final = 2000
_LIST: Final = """
SELECT id::text, status, created_at, "from", "to", cc, bcc, subject FROM emails ORDER BY created_at DESC, id LIMIT %s"""
_EVENTS: Final = "SELECT type, received_at, payload FROM email_events WHERE email_id = %s ORDER BY received_at, id"


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 shown, 1 there is no such row, or no database, 2 wrong arguments."""
    options = _options(arguments)
    try:
        url = _database_url()
        if options.id is None:
            lines = [listed(row) for row in rows(url, _LIST, options.count)] or ["There are no rows yet."]
        else:
            found = rows(url, "SELECT * FROM emails WHERE id = %s", str(options.id))
            if not found:
                print("There is no row of this id.", file=sys.stderr)
                return 1
            lines = [*whole(found[0]), *(event(row) for row in rows(url, _EVENTS, str(options.id)))]
    except (OSError, psycopg2.OperationalError):
        print("There is no database to look into: ./scripts/dev has to run.", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def rows(database_url: str, statement: str, parameter: object) -> list[Row]:
    """What a statement finds, by names of columns."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, (parameter,))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    finally:
        connection.close()


def listed(row: Row) -> str:
    """One line: time, id, status, sender, recipients, subject. Rows are of any sender, so a list may be none."""
    fields = [value for field in ("to", "cc", "bcc") if isinstance(value := row[field], list)]
    boxes = [str(address) for value in fields for address in value] or ["nowhere"]
    more = f" and {len(boxes) - 1} more" if len(boxes) > 1 else ""
    start = f"{_time(row['created_at'])}  {row['id']}  {row['status']!s:<9}"
    return printable(f"{start}  {row['from']} -> {boxes[0]}{more}  {row['subject']}")


def whole(row: Row) -> list[str]:
    """A line for each column that has a value."""
    return [f"{name + ':':<20} {_value(value)}" for name, value in row.items() if value not in (None, [], {})]


def event(row: Row) -> str:
    """A line for an event of the mail."""
    return printable(f"event: {_time(row['received_at'])}  {row['type']}  {_value(row['payload'])}")


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    cut = "" if len(text) <= _SHOWN else f"… ({len(text)} characters)"
    return printable(text[:_SHOWN]) + cut


def _time(moment: object) -> str:
    return moment.astimezone().strftime("%H:%M:%S") if isinstance(moment, datetime) else "--:--:--"


def _database_url() -> str:
    found = re.search(r"^DATABASE_URL='(.*)'$", ENVIRONMENT.read_text(), re.MULTILINE)
    if found is None:
        raise FileNotFoundError(ENVIRONMENT)
    return found[1]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./scripts/look",
        description="Shows the rows in the database of ./scripts/dev, the newest first, or one of them whole with its"
        " events. Control characters are shown as escapes.",
    )
    parser.add_argument("id", nargs="?", type=uuid.UUID, metavar="EMAIL-ID", help="the row to be shown whole")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="rows to list (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
