"""The storage rooms by themselves, on real servers. psycopg2 waits in gevent's way, as it does in a worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.core.records import EmailRow
from relay.postgres.store import Store
from relay.redis.cache import Cache


@pytest.fixture(autouse=True)
def _green(green_psycopg: None) -> None:
    """For each test of the folder."""


@pytest.fixture
def store(postgres_url: str) -> Iterator[Store]:
    store = Store(postgres_url)
    yield store
    store.close()


@pytest.fixture
def cache(redis_url: str) -> Iterator[Cache]:
    cache = Cache(redis_url, timeout=1.0, pause=0.1)  # patient with a busy machine
    yield cache
    cache.close()


@pytest.fixture
def make_row() -> Callable[..., EmailRow]:
    """A row to insert: `make_row(to=(…), idempotency_key=…)`, every column optional."""

    def make(**columns: Any) -> EmailRow:
        defaults: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "user_id": "user",
            "sender": "Ann <ann@example.com>",
            "to": ("to@x.example",),
            "cc": (),
            "bcc": (),
            "reply_to": (),
            "subject": "Hello",
            "html": "",
            "text": "Hi\n",
            "headers": {},
            "attachments": (),
            "tags": (),
        }
        return EmailRow(**(defaults | columns))

    return make
