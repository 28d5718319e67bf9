"""The nets under the publisher, with a queue that fails at chosen calls: rows and intents are real."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
import redis

from relay.aws.sqs import Queue
from relay.core.errors import QueueUnavailable
from relay.core.records import EmailRow
from relay.jobs import sweep as sweep_module
from relay.jobs.intents import Intents
from relay.jobs.sender import JobSender
from relay.jobs.sweep import Sweep
from relay.postgres.store import Store
from relay.redis.cache import Cache
from relay.redis.keys import INTENTS_KEY
from tests.support.queue_double import LOST, REFUSED, QueueDouble

Query = Callable[..., list[dict[str, Any]]]


class World:
    """A sweep over stored rows, and the queue that it sends to. Without pauses between its tries."""

    def __init__(self, store: Store, cache: Cache, make_row: Callable[..., EmailRow], query: Query, rows: int) -> None:
        self.queue = QueueDouble()
        self.sender = JobSender(cast(Queue, self.queue))
        self.sender.first_pause = self.sender.longest_pause = self.sender.longest_lost_pause = 0.0
        self.sender._pause = 0.0
        self.sweep = Sweep(self.sender, store, Intents(cache.link))
        self.sweep.reminders_per_second = 1e6
        self.ids = [str(uuid.uuid4()) for _ in range(rows)]
        for email_id in self.ids:
            store.insert([make_row(id=email_id)], ["to@x.example"])
        query("UPDATE emails SET created_at = now() - interval '16 minutes'")

    def try_to(self, look: Callable[[], int], times: int) -> list[int | str]:
        found: list[int | str] = []
        for _ in range(times):
            try:
                found.append(look())
            except QueueUnavailable as error:
                found.append(error.code)
        return found


@pytest.fixture
def world(store: Store, cache: Cache, make_row: Callable[..., EmailRow], query: Query) -> World:
    return World(store, cache, make_row, query, rows=30)


@pytest.mark.parametrize("page", [200, 8])
def test_a_row_whose_job_the_queue_did_not_take_was_not_reminded_of(
    world: World, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_PAGE", page)
    world.queue.answers = [REFUSED] * 3
    assert world.try_to(world.sweep.remind, 5) == [REFUSED.code] * 3 + [30, 0]
    assert world.queue.taken == dict.fromkeys(world.ids, 1)


def test_rows_that_the_queue_refuses_alone_are_reminded_of_again(world: World) -> None:
    world.queue.refuses = set(world.ids[:2])
    world.sweep.remind()
    world.queue.refuses = set()
    world.sweep.remind()
    assert world.queue.taken == dict.fromkeys(world.ids, 1)


@pytest.mark.parametrize("net", ["intents", "overdue rows"])
def test_while_answers_are_lost_the_row_that_is_sent_is_another_each_time(
    world: World, net: str, redis_url: str
) -> None:
    """Of 30 rows 20 are sent in doubt, each one time alone: the same one would have 20 jobs."""
    look = world.sweep.remind
    if net == "intents":
        look = world.sweep.publish_forgotten
        with redis.Redis.from_url(redis_url) as client:
            client.zadd(INTENTS_KEY, dict.fromkeys(world.ids, (_now_ms(client) - 60_000)))
    world.queue.answers = [LOST] * 20
    assert world.try_to(look, 20) == [LOST.code] * 20
    sent = [call for call in world.queue.calls[1:] if call != "probe"]
    assert {len(call) for call in sent} == {1}
    assert len(set(sent)) >= 5


def _now_ms(client: redis.Redis) -> int:
    seconds, microseconds = cast("tuple[int, int]", client.time())
    return seconds * 1000 + microseconds // 1000
