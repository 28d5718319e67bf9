"""A large row is a separate statement: the same row as a small one, whatever is in its texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from relay.core.records import EmailRow, StoredAttachment
from relay.postgres.group_commit import Repeated, Stored, Suppressed
from relay.postgres.pending_message import PendingMessage
from relay.postgres.store import Store

MakeRow = Callable[..., EmailRow]
Query = Callable[..., list[dict[str, Any]]]

#: What would end a literal, an escape or a statement where it is not taken as it is.
HOSTILE = "'; DROP TABLE emails; -- $$ $r$ $rabc$ \\' \\\\ \" %s {html} {rows} \x01\x1f\x7f\r\n \U0001f600 é 漢\n"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        (HOSTILE * 18_000, "short"),
        ("short", HOSTILE * 18_000),
        (HOSTILE * 18_000, HOSTILE * 18_000),
        ("$" * 1_100_000, ""),
    ],
)
def test_it_is_stored_as_it_is(store: Store, make_row: MakeRow, query: Query, html: str, text: str) -> None:
    row = make_row(html=html, text=text, subject=HOSTILE, headers={"X-One": "1"}, tags=(("kind", "welcome"),))
    assert PendingMessage([row], ["to@x.example"], 0.0).statement
    assert store.insert([row], ["to@x.example"]) == Stored()
    (stored,) = query("SELECT * FROM emails")
    assert (stored["html"], stored["text"], stored["subject"]) == (html, text, HOSTILE)
    assert (stored["headers"], stored["tags"]) == ({"X-One": "1"}, [{"name": "kind", "value": "welcome"}])
    assert store.insert([row], ["to@x.example"]) == Stored(), "a second try finds it there"


def test_what_postgres_cannot_hold_is_left_out(store: Store, make_row: MakeRow, query: Query) -> None:
    row = make_row(html="a\0b\ud800c" * 300_000, text="\0")
    assert store.insert([row], ["to@x.example"]) == Stored()
    assert query("SELECT html, text FROM emails") == [{"html": "abc" * 300_000, "text": ""}]


def test_guard_and_key_hold_for_it_as_for_a_small_one(store: Store, make_row: MakeRow, query: Query) -> None:
    attachment = StoredAttachment("a.pdf", "aGk=" * 300_000)
    first = make_row(attachments=(attachment,), idempotency_key="key")
    assert store.insert([first], ["to@x.example"]) == Stored()
    assert store.insert([make_row(attachments=(attachment,), idempotency_key="key")], ["to@x.example"]) == Repeated(
        first.id
    )
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " VALUES (gen_random_uuid(), 'user', 'gone@x.example', 'bounced')"
    )
    outcome = store.insert([make_row(attachments=(attachment,))], ["gone@x.example"])
    assert outcome == Suppressed({"gone@x.example": "bounced"})
    assert len(query("SELECT 1 FROM emails")) == 1
