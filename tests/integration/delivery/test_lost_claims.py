"""Claims whose answer is lost on its way: real Postgres behind a proxy that breaks the connection at that moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from relay.core.errors import PostgresUnavailable
from relay.delivery.handovers import Handovers
from relay.postgres import lost_claims
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.redis.claim_states import ClaimStates
from tests.support.proxy import Proxy, Trip

Query = Callable[..., list[tuple[Any, ...]]]
AddEmail = Callable[..., str]

CLAIM = b"SET status = 'processing'"
STATUSES = "SELECT status, count(*)::int FROM emails GROUP BY status ORDER BY status"


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    parts = urlsplit(postgres_url)
    with Proxy(parts.port or 5432, parts.hostname or "127.0.0.1") as proxy:
        yield proxy


@pytest.fixture
def behind_proxy(proxy: Proxy, postgres_url: str, green_psycopg: None) -> Iterator[Outgoing]:
    url = postgres_url.replace(f":{urlsplit(postgres_url).port}", f":{proxy.port}")
    database = Database(url, statement_seconds=4.5, idle_limit=4)
    yield Outgoing(database)
    database.close()


def claimed(outgoing: Outgoing, ids: list[str], way: str) -> list[str]:
    """What a process knows to have claimed."""
    try:
        if way == "job":
            return [str(row[0]) for email_id in ids for row in outgoing.claim_one(email_id)]
        return [str(row[0]) for row in outgoing.claim(ids, skip_locked=True)]
    except PostgresUnavailable:
        return []


@pytest.mark.parametrize("way", ["job", "rows"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_row_whose_claim_is_not_answered_goes_back_and_counts_as_not_sent(
    behind_proxy: Outgoing,
    proxy: Proxy,
    outgoing: Outgoing,
    left: LeftRows,
    without_redis: ClaimStates,
    add_email: AddEmail,
    query: Query,
    way: str,
    times: int,
) -> None:
    """Whether the second try is answered or not: the row is claimed already, and it knows of none."""
    email_id, other = add_email(), add_email()
    handovers = Handovers(without_redis, behind_proxy, left, service="test", index=0, provider="ses")
    behind_proxy.due([email_id])
    proxy.trip = Trip(CLAIM, deliver=True, times=times)
    assert claimed(behind_proxy, [email_id], way) == []
    proxy.heal()
    assert query(STATUSES) == [("processing", 1), ("queued", 1)]
    handovers.look()
    assert query(STATUSES) == [("queued", 2)]
    assert query(
        "SELECT provider_last_error_code, provider_next_retry_at IS NULL FROM emails WHERE id = %s", email_id
    ) == [(None, False)]
    # What is claimed from then on is not given back, whichever process has it.
    assert claimed(behind_proxy, [email_id], way) == [email_id]
    assert outgoing.claim([other])
    handovers.look()
    assert query(STATUSES) == [("processing", 2)]


def test_a_claim_that_another_process_made_meanwhile_stays(
    behind_proxy: Outgoing, proxy: Proxy, outgoing: Outgoing, add_email: AddEmail, query: Query
) -> None:
    email_id = add_email()
    behind_proxy.due([email_id])
    proxy.trip = Trip(CLAIM, deliver=False, times=2)
    assert claimed(behind_proxy, [email_id], "rows") == []
    proxy.heal()
    assert query(STATUSES) == [("queued", 1)]
    assert outgoing.claim([email_id])
    assert behind_proxy.give_back_lost() == 0
    assert query(STATUSES) == [("processing", 1)]


def test_what_the_second_try_has_claimed_stays(
    behind_proxy: Outgoing, proxy: Proxy, add_email: AddEmail, query: Query
) -> None:
    """Both tries are of one claim."""
    email_id = add_email()
    behind_proxy.due([email_id])
    proxy.trip = Trip(CLAIM, deliver=False, times=1)
    assert claimed(behind_proxy, [email_id], "rows") == [email_id]
    assert behind_proxy.give_back_lost() == 0
    assert query(STATUSES) == [("processing", 1)]


def test_what_postgres_carries_out_late_is_given_back_too(
    behind_proxy: Outgoing, proxy: Proxy, add_email: AddEmail, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stood still carries out what it was sent although no client waits for it: it is looked for."""
    email_id = add_email()
    behind_proxy.due([email_id])
    proxy.trip = Trip(CLAIM, deliver=True, times=2)
    assert claimed(behind_proxy, [email_id], "rows") == []
    proxy.heal()
    query("UPDATE emails SET status = 'queued'")  # as it was before the late one
    assert behind_proxy.give_back_lost() == 0
    query("UPDATE emails SET status = 'processing'")
    assert behind_proxy.give_back_lost() == 1
    assert not behind_proxy._lost_claims._lost
    # And nothing is asked for ever.
    monkeypatch.setattr(lost_claims, "_STILL", 0.0)
    proxy.trip = Trip(CLAIM, deliver=False, times=2)
    query("UPDATE emails SET provider_next_retry_at = NULL")
    assert claimed(behind_proxy, [email_id], "rows") == []
    proxy.heal()
    for _ in range(2):
        behind_proxy.give_back_lost()
    assert not behind_proxy._lost_claims._lost


def test_while_postgres_is_away_no_lost_claim_is_forgotten(
    behind_proxy: Outgoing, proxy: Proxy, add_email: AddEmail, query: Query
) -> None:
    ids = [add_email() for _ in range(3)]
    behind_proxy.due(ids)
    proxy.trip = Trip(CLAIM, deliver=True, times=1)
    assert claimed(behind_proxy, ids, "rows") == []
    proxy.trip = Trip(b"SET status = 'queued'", deliver=False, times=100)
    with pytest.raises(PostgresUnavailable):
        behind_proxy.give_back_lost()
    proxy.heal()
    assert behind_proxy.give_back_lost() == 3
    assert query(STATUSES) == [("queued", 3)]
