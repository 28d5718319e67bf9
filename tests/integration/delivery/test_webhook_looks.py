"""Looks for due deliveries where much is pending: what they read is counted, as Postgres says it, and no time."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gevent
import pytest
from gevent.event import Event

from relay.delivery import webhooks as webhooks_module
from relay.delivery.outbound_http import Outbound
from relay.delivery.row_source import Turns
from relay.delivery.webhook_attempts import WebhookAttempts
from relay.delivery.webhook_looks import WebhookLooks
from relay.delivery.webhook_places import WebhookPlaces
from relay.delivery.webhook_secrets import WebhookSecrets
from relay.delivery.webhooks import LOOK_MOST, Webhooks
from relay.postgres import webhook_deliveries
from relay.postgres.database import Database
from relay.postgres.driver import Row
from relay.postgres.webhook_deliveries import PLANNER, Due, WebhookDeliveries
from tests.support.webhook_rows import MATERIAL, add_delivery, add_event, add_webhook

Query = Callable[..., list[tuple[Any, ...]]]
READ_MOST = 300
BLOCKS = 6
#: A block of 8,192 octets has 78 of the shortest rows.
ROWS_OF_A_BLOCK = 80
DEAD, LIVE = "https://dead.example.com/", "https://live.example.com/"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_deliveries, "READ_MOST", READ_MOST)
    monkeypatch.setattr(webhook_deliveries, "PART_BLOCKS", BLOCKS - 2)
    monkeypatch.setattr(webhook_deliveries, "TAIL_BLOCKS", 2)


class Counting(Database):
    """Has Postgres say of each statement how many rows of `webhook_deliveries` it reads."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.read: list[int] = []

    def use_shared(self, deadline: float, work: Callable[[Any], Any], *, owner: str = "") -> Any:
        return super().use_shared(deadline, lambda cursor: work(_Explained(cursor, self.read)), owner=owner)


class _Explained:
    def __init__(self, cursor: Any, read: list[int]) -> None:
        self._cursor = cursor
        self._read = read

    def execute(self, statement: str, values: Mapping[str, object] | None = None) -> None:
        self._cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
        (((plan,),),) = self._cursor.fetchall()
        self._read.append(_rows_read(plan["Plan"]))
        self._cursor.execute(statement, values)

    def fetchall(self) -> list[Row]:
        return list(self._cursor.fetchall())


def _rows_read(node: dict[str, Any]) -> int:
    below = sum(map(_rows_read, node.get("Plans", [])))
    if node.get("Relation Name") != "webhook_deliveries":
        return below
    rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return below + round(rows * node["Actual Loops"])


@pytest.fixture
def counting(database: Database, postgres_url: str) -> Iterator[Counting]:
    """`database`: what makes psycopg2 wait in gevent's way."""
    counting = Counting(postgres_url, statement_seconds=60.0, idle_limit=2, switched_off=PLANNER)
    yield counting
    counting.close()


def add_many(
    query: Query, webhook: str, event: str, count: int, status: str = "pending", due: str = "NULL"
) -> set[str]:
    rows = query(
        "INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status, next_retry_at)"
        f" SELECT gen_random_uuid(), %s, %s, 0, %s, {due} FROM generate_series(1, %s) RETURNING id::text",
        webhook,
        event,
        status,
        count,
    )
    return {delivery for (delivery,) in rows}


def a_round(looks: WebhookLooks) -> tuple[set[str], int]:
    """What the looks find from one at all, or its place, to the next; and how many looks these are."""
    found: set[str] = set()
    count = 0
    while not count or looks.in_parts:
        due, _ = looks.look(LOOK_MOST, [])
        found |= {each.delivery_id for each in due}
        count += 1
        assert count < 1000
    return found, count


def test_no_look_reads_more_however_much_is_pending(counting: Counting, query: Query, postgres_url: str) -> None:
    """And whatever the statistics say: from before the backlog, or from after it."""
    dead, live = add_webhook(postgres_url, DEAD), add_webhook(postgres_url, LIVE, user="other")
    event = add_event(postgres_url)
    looks = WebhookLooks(WebhookDeliveries(counting))
    rounds = []
    for pending, analysed in ((READ_MOST, False), (1_000, False), (2_500, False), (0, True)):
        add_many(query, dead, event, pending)
        if analysed:
            query("ANALYZE webhook_deliveries")
        delivery = add_delivery(postgres_url, live, event)
        found, count = a_round(looks)
        assert delivery in found
        rounds.append(count)
        assert max(counting.read) <= max(READ_MOST + 1, BLOCKS * ROWS_OF_A_BLOCK)
    assert rounds[0] < rounds[1] < rounds[2]


@pytest.mark.parametrize("seed", range(3))
def test_a_round_finds_all_that_is_due_wherever_it_stands(
    counting: Counting, query: Query, postgres_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    event = add_event(postgres_url)
    webhooks = [add_webhook(postgres_url, f"{LIVE}{number}", user=str(number)) for number in range(4)]
    due: set[str] = set()
    for _ in range(25):
        webhook, many = chance.choice(webhooks), chance.randrange(1, 80)
        kind = chance.randrange(4)
        if kind == 0:
            add_many(query, webhook, event, many, status="success")
        elif kind == 1:
            add_many(query, webhook, event, many, due="now() + interval '1 hour'")
        else:
            due |= add_many(query, webhook, event, many, due=chance.choice(["NULL", "now() - interval '1 s'"]))
    looks = WebhookLooks(WebhookDeliveries(counting))
    found, count = a_round(looks)
    assert found == due
    assert count > 1
    # What has ended since leaves few: one look is enough, and it is at all of them.
    query("UPDATE webhook_deliveries SET status = 'success' WHERE id::text <> ALL (%s)", sorted(due)[:50])
    assert [(len(each), whole) for each, whole in [looks.look(LOOK_MOST, [])]] == [(50, True)]


def test_what_comes_during_a_round_is_found_by_the_next_look(
    counting: Counting, query: Query, postgres_url: str
) -> None:
    dead, live = add_webhook(postgres_url, DEAD), add_webhook(postgres_url, LIVE, user="other")
    event = add_event(postgres_url)
    add_many(query, dead, event, 2_500)
    looks = WebhookLooks(WebhookDeliveries(counting))
    for _ in range(3):
        looks.look(LOOK_MOST, [])
        delivery = add_delivery(postgres_url, live, event)
        due, whole = looks.look(LOOK_MOST, [])
        assert not whole
        assert delivery in {each.delivery_id for each in due}
        assert [each for each, _ in [looks.look(LOOK_MOST, [dead, live])]] == [[]]


class Endpoints(Outbound):
    """The dead ones do not answer before `release`, the others answer 200."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.release = Event()

    def request(self, _method: str, url: str, *_: Any, **__: Any) -> int:
        self.calls[url] += 1
        if url.startswith(DEAD):
            self.release.wait()
        return 200


def test_backlogs_of_dead_endpoints_delay_no_other_and_fill_no_memory(
    database: Database, query: Query, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dead endpoint has so many deliveries that it is left out, and all of them have more than may be known."""
    monkeypatch.setattr(webhooks_module, "MOST_KNOWN", READ_MOST)
    known: list[int] = []

    class Places(WebhookPlaces):
        def take(self) -> list[Due]:
            known.append(len(self))
            return super().take()

    monkeypatch.setattr(webhooks_module, "WebhookPlaces", Places)
    event, live = add_event(postgres_url), add_webhook(postgres_url, LIVE, user="other")
    for number in range(30):
        add_many(query, add_webhook(postgres_url, f"{DEAD}{number}"), event, 60)
        add_many(query, live, event, 3)
    deliveries, endpoints = WebhookDeliveries(database), Endpoints()
    webhooks = Webhooks(deliveries, WebhookAttempts(deliveries, WebhookSecrets(MATERIAL), endpoints), Turns())
    webhooks.start()
    try:
        limit = time.monotonic() + 60
        while query("SELECT count(*) FROM webhook_deliveries WHERE status = 'success'") != [(90,)]:
            assert time.monotonic() < limit, endpoints.calls
            gevent.sleep(0.1)
        looks = len(known)
        while len(known) < looks + 20:
            assert time.monotonic() < limit
            gevent.sleep(0.1)
    finally:
        endpoints.release.set()
        webhooks.drain(5.0)
    assert endpoints.calls[LIVE] == 90
    assert max(known) <= BLOCKS * ROWS_OF_A_BLOCK


def test_a_webhook_of_which_much_is_known_is_left_out_of_a_part() -> None:
    places = WebhookPlaces()
    places.add(Due(f"{webhook} {number}", webhook, "user") for webhook in ("a", "b") for number in range(5))
    places.add([Due("a 5", "a", "user")])
    assert (places.well_known(6), places.well_known(5)) == (["a"], ["a", "b"])
