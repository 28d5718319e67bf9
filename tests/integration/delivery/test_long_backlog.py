"""A long backlog of one user, and what handing it out asks of Postgres: counted in statements, not in time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.lock
import pytest

from relay.delivery.row_source import CLAIM_ROWS, LOOK_ROWS, RowSource, Turns
from relay.delivery.shares import Shares
from relay.delivery.unclear import LeftBehind
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, WaitingRows
from relay.redis.claim_states import ClaimStates
from tests.integration.delivery.test_waiting import insert

Query = Callable[..., list[tuple[Any, ...]]]
#: More than a look reads, so that rows have to be read several times.
MANY = 4 * LOOK_ROWS
PLACES = 3 * CLAIM_ROWS


@pytest.fixture
def looking(postgres_url: str, outgoing: Outgoing) -> Iterator[Database]:
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=3, switched_off=PLANNER)
    yield database
    database.close()


def test_claims_are_small_and_rows_are_not_read_anew_for_each_mail(
    outgoing: Outgoing, looking: Database, without_redis: ClaimStates, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = WaitingRows(looking)
    counts: Counter[str] = Counter()
    claims: list[int] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            counts[name] += 1
            if name == "claim":
                claims.append(len(arguments[0]))
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    counted(waiting, "oldest")
    counted(outgoing, "claim")
    # Looks and scans come by the clock; what is counted is what the mails themselves cause.
    monkeypatch.setattr(RowSource, "look_seconds", 5.0)
    monkeypatch.setattr(RowSource, "scan_seconds", 3600.0)
    insert(query, MANY)
    delivered: list[str] = []

    def deliver(row: tuple[Any, ...]) -> None:
        gevent.sleep(0.005 + 0.045 * (len(delivered) * 7 % 10) / 10)  # they end one by one
        outgoing.sent(str(row[0]), None)
        delivered.append(str(row[0]))

    places = gevent.lock.BoundedSemaphore(PLACES)
    source = RowSource(
        outgoing,
        waiting,
        deliver,
        places,
        shares=Shares(PLACES),
        left_behind=LeftBehind(LeftRows(looking), without_redis),
        queue_works=None,
        turns=Turns(),
        wait_for_leave=lambda: None,
    )
    loops = source.start()
    limit = time.monotonic() + 120.0
    while len(delivered) < MANY:
        assert time.monotonic() < limit, len(delivered)
        gevent.sleep(0.02)
    for loop in loops:
        loop.stop()
    assert len(set(delivered)) == MANY
    assert max(claims) <= CLAIM_ROWS
    # One brings enough for 200 mails at the least; some more come with looks, and at the end.
    assert counts["oldest"] < 20
