"""The INSERT: its guard looks at every recipient, and at the user's own entries alone; its rows come together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from relay.core.errors import Unavailable
from relay.core.records import EmailRow, StoredAttachment
from relay.postgres.group_commit import Stored, Suppressed
from relay.postgres.store import Store

MakeRow = Callable[..., EmailRow]
Query = Callable[..., list[dict[str, Any]]]

EVERYONE = [f"p{number}@x.example" for number in range(120)]


def suppress(query: Query, email: str, user_id: str) -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), %s, %s, 'bounced')",
        user_id,
        email,
    )


@pytest.mark.parametrize("position", [0, 49, 50, 99, 119])
def test_every_recipient_of_every_row_is_looked_at(
    store: Store, make_row: MakeRow, query: Query, position: int
) -> None:
    suppress(query, EVERYONE[position], "user")
    rows = [make_row(to=tuple(EVERYONE[start : start + 50])) for start in range(0, 120, 50)]
    assert store.insert(rows, EVERYONE) == Suppressed({EVERYONE[position]: "bounced"})
    assert query("SELECT 1 FROM emails") == []


def test_another_users_list_is_not_looked_at(store: Store, make_row: MakeRow, query: Query) -> None:
    suppress(query, EVERYONE[0], "other")
    assert store.find_suppressions("user", EVERYONE) == {}
    assert store.find_suppressions("other", EVERYONE) == {EVERYONE[0]: "bounced"}
    assert store.insert([make_row(to=(EVERYONE[0],))], [EVERYONE[0]]) == Stored()


def test_further_rows_have_all_that_the_first_has(store: Store, make_row: MakeRow, query: Query) -> None:
    shared = {
        "sender": "Ann <ann@example.com>",
        "reply_to": ("r@x.example",),
        "html": "<p>x</p>",
        "headers": {"X-Own": "y"},
        "attachments": (StoredAttachment("a.txt", "aGk=", "text/plain", "cid"),),
        "tags": (("name", "value"),),
    }
    rows = [make_row(to=tuple(EVERYONE[start : start + 50]), **shared) for start in range(0, 120, 50)]
    store.insert([make_row(subject="another")], [])
    assert store.insert(rows, EVERYONE) == Stored()
    stored = query(
        'SELECT DISTINCT "from", reply_to, subject, html, text, headers, attachments, tags, user_id FROM emails'
        " WHERE id = ANY (%s::uuid[])",
        [row.id for row in rows],
    )
    (one,) = stored
    assert (one["subject"], one["headers"], one["tags"]) == (
        "Hello",
        {"X-Own": "y"},
        [{"name": "name", "value": "value"}],
    )
    assert [each["content"] for each in one["attachments"]] == ["aGk="]


def test_a_further_row_that_does_not_go_in_takes_the_first_with_it(
    store: Store, make_row: MakeRow, query: Query
) -> None:
    assert store.insert([make_row(idempotency_key="taken")], []) == Stored()
    rows = [make_row(idempotency_key="first"), make_row(idempotency_key="taken")]
    with contextlib.suppress(Unavailable):
        assert store.insert(rows, []) != Stored()
    assert query("SELECT 1 FROM emails WHERE idempotency_key = 'first'") == []
