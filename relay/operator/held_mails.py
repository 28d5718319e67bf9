"""`python -m relay.delivery --unclear`: mails that no worker takes up by itself, and what is to become of one.

A mail of more than 24 hours whose worker did not finish: it may have been sent, and its recipients don't expect it any
more. `--release ID` has it sent, `--fail ID` ends it as failed. No address and no subject is shown.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Sequence
from typing import Final

import structlog

from config import environment
from relay.core.errors import PostgresUnavailable
from relay.operator import preflight
from relay.postgres.database import Database
from relay.postgres.left_rows import UNCLEAR, UNCLEAR_TEXT, Held, LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import Event

USAGE: Final = "usage: python -m relay.delivery --unclear [--release EMAIL-ID | --fail EMAIL-ID]"
#: Mails that are listed, the oldest first.
_MOST: Final = 1000


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 done, 1 no such mail or no Postgres, 2 for wrong settings or arguments."""
    logging.disable(logging.CRITICAL)  # what is worth saying is said below
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if arguments and (len(arguments) != 2 or arguments[0] not in ("--release", "--fail")):
        return _say(USAGE, 2)
    try:
        wanted = str(uuid.UUID(arguments[1])) if arguments else None
    except ValueError:
        return _say("an email's id is a UUID", 2)
    database = None
    try:
        database = Database(preflight.load().database_url, statement_seconds=30.0, idle_limit=2)
        if wanted is None:
            return _list(LeftRows(database, deadline=35.0))
        return _end(database, wanted, release=arguments[0] == "--release")
    except environment.WrongSettings as error:
        return _say(str(error), 2)
    except PostgresUnavailable:
        return _say("Postgres does not answer, or refuses", 1)
    finally:
        if database is not None:
            database.close()


def _list(left: LeftRows) -> int:
    rows = left.held(_MOST)
    for row in rows:
        print(_line(row))
    more = " or more" if len(rows) == _MOST else ""
    mails = "mail waits" if len(rows) == 1 else "mails wait"
    print(f"{len(rows)}{more} {mails} for --release or --fail", file=sys.stderr)
    return 0


def _line(row: Held) -> str:
    claimed = (
        "claimed at a time that is not known" if row.claimed is None else f"claimed {row.claimed:%Y-%m-%dT%H:%M:%SZ}"
    )
    return f"{row.email_id}  made {row.created:%Y-%m-%dT%H:%M:%SZ}  {claimed}"


def _end(database: Database, email_id: str, *, release: bool) -> int:
    left = LeftRows(database)
    if not left.held(1, email_id=email_id):
        return _say("no mail of this id waits: its worker may be at work, or it is younger than 24 hours", 1)
    if release:
        return 0 if left.release(email_id) else _say("it has changed meanwhile", 1)
    error = {"code": UNCLEAR, "message": UNCLEAR_TEXT}
    payload = {"reason": "delivery_unclear", "last_error": error}
    event = Event(type="failed", source_id=f"provider-dead-letter:{email_id}:unclear", payload=payload)
    Outgoing(database).fail_held(email_id, UNCLEAR, UNCLEAR_TEXT, event)
    return 0


def _say(text: str, status: int) -> int:
    print(f"python -m relay.delivery --unclear: {text}", file=sys.stderr)
    return status
