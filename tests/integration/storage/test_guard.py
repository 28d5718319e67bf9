"""The guard in the INSERT, and the look at a user's list: every recipient, and the user's own entries alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from relay.core.records import EmailRow
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
