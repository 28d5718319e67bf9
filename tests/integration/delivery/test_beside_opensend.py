"""OpenSend's worker beside ours on the same rows, with its claim to the letter (contract section 6).

The worker itself can't be had here: what it does with a row is a thread that claims, "sends" and records.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2

from scripts.services import Delivery, Ses
from tests.integration.delivery.test_claimed_rows import OPENSEND

Query = Callable[..., list[tuple[Any, ...]]]
ROWS = 3000


class OpenSend:
    """Claims queued rows one after the other, from either end, and notes which it has sent."""

    def __init__(self, url: str, *, newest_first: bool, by_hundreds: bool) -> None:
        self._url = url
        self._order = "DESC" if newest_first else "ASC"
        self._many = 100 if by_hundreds else 1
        self.sent: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        """Finishes the row at hand."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        connection = psycopg2.connect(self._url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not self._ended.is_set():
                cursor.execute(
                    f"SELECT id::text FROM emails WHERE status = 'queued' ORDER BY created_at {self._order} LIMIT %s",
                    (self._many,),
                )
                for (email_id,) in cursor.fetchall():
                    cursor.execute(OPENSEND, (email_id,))
                    if cursor.fetchone() is None or self._ended.wait(0.03):
                        continue
                    self.sent.append(email_id)
                    cursor.execute(
                        "UPDATE emails SET status = 'sent', sent_at = now() WHERE id = %s AND status = 'processing'",
                        (email_id,),
                    )
        connection.close()


def test_no_row_is_sent_twice_by_two_kinds_of_workers(
    query: Query, ses: Ses, postgres_url: str, tmp_path: Path
) -> None:
    query("ALTER TABLE emails SET (autovacuum_enabled = off)")  # without statistics, as in a new database
    query(
        'INSERT INTO emails (id, "from", "to", subject, html, text, user_id)'
        " SELECT gen_random_uuid(), 'a@example.com', '[\"to@x.example\"]', 's', '', 't', (n %% 7)::text"
        " FROM generate_series(1, %s) AS n",
        ROWS,
    )
    settings = {
        **ses.client_environment,
        "DATABASE_URL": postgres_url,
        "SMTP_RELAY_DELIVERY_PROCESSES": "2",
        "SMTP_RELAY_DELIVERY_CONCURRENCY": "6",
    }
    ours = Delivery(tmp_path / "delivery", settings)
    ours.start()
    theirs = [
        OpenSend(postgres_url, newest_first=newest, by_hundreds=hundreds)
        for newest in (True, False)
        for hundreds in (True, False)
    ]
    try:
        for target in (100, 250):
            _until(lambda target=target: len(ses.taken()) >= target)  # type: ignore[misc]
            ours.kill()
            ours.start()
        _until(lambda: query("SELECT count(*) FROM emails WHERE status = 'queued'") == [(0,)])
    finally:
        for each in theirs:
            each.end()
    ours.stop()  # in good order: what is `processing` now belongs to the dead
    by_ours = Counter(taken.email_id for taken in ses.taken())
    by_theirs = Counter(email_id for each in theirs for email_id in each.sent)
    assert by_ours
    assert by_theirs
    assert set((by_ours + by_theirs).values()) == {1}
    left = {email_id for (email_id,) in query("SELECT id::text FROM emails WHERE status = 'processing'")}
    assert not left & by_theirs.keys()
    # What the dead left behind leaves when its claims are old. Copies: those that SES had taken when they died.
    query(
        "UPDATE emails SET provider_last_attempted_at = now() - interval '1 hour'"
        " WHERE status = 'processing' AND provider_last_attempted_at IS NOT NULL"
    )
    unclear = left & by_ours.keys()
    ours.start()
    _until(
        lambda: (
            query(
                "SELECT count(*) FROM emails WHERE status <> 'sent' AND provider_last_attempted_at IS NOT NULL",
            )
            == [(0,)]
        )
    )
    by_ours = Counter(taken.email_id for taken in ses.taken())
    assert {email_id for email_id, count in (by_ours + by_theirs).items() if count > 1} == unclear
    stuck = query("SELECT count(*) FROM emails WHERE status <> 'sent'")[0][0]
    assert stuck <= len(theirs)  # claims of theirs at whose end the test stopped them
    assert len(by_ours + by_theirs) + stuck == ROWS
    ours.stop()


def _until(done: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.1)
