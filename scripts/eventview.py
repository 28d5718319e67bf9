"""What becomes of mails, to be read on a screen: one short line for each event that is recorded."""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/dev, and no command.")

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import psycopg2

from scripts.terminal import printable

#: For so long an event may be on its way from its time to its commit.
_COMMIT: Final = timedelta(seconds=60)
_BAD: Final = frozenset(("bounced", "complained", "failed", "suppressed", "delayed", "delivery_delayed"))


class EventView:
    """Follows `email_events` (contract section 3), from now on."""

    def __init__(self, database_url: str, paint: Callable[[str, str], str]) -> None:
        """`paint(text, style)` colours."""
        self._url = database_url
        self._paint = paint
        self._connection: psycopg2.extensions.connection | None = None
        self._since = datetime.now(UTC)
        self._seen: dict[str, datetime] = {}

    def new_lines(self) -> Iterator[str]:
        """What was recorded since the last call; nothing while Postgres can't be asked."""
        try:
            rows = self._rows()
        except psycopg2.Error:
            self._connection = None
            return
        for event_id, kind, email_id, received_at in rows:
            if event_id not in self._seen:
                self._seen[event_id] = received_at
                yield self._readable(kind.removeprefix("email."), email_id, received_at)
        if self._seen:
            self._since = max(self._since, max(self._seen.values()) - _COMMIT)
            self._seen = {event_id: at for event_id, at in self._seen.items() if at >= self._since}

    def _rows(self) -> list[tuple[str, str, str | None, datetime]]:
        if self._connection is None:
            self._connection = psycopg2.connect(self._url)
            self._connection.autocommit = True
        with contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute(
                "SELECT id::text, type, email_id::text, received_at FROM email_events WHERE received_at >= %s"
                " ORDER BY received_at, id",
                (self._since,),
            )
            found: list[tuple[str, str, str | None, datetime]] = cursor.fetchall()
            return found

    def _readable(self, kind: str, email_id: str | None, received_at: datetime) -> str:
        at = received_at.astimezone().strftime("%H:%M:%S")
        return (
            f"{at}  event     {email_id or '-'}  {self._paint(printable(kind), 'yellow' if kind in _BAD else 'green')}"
        )
