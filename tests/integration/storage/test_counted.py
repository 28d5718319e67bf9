"""What goes wrong and what the caches know is counted, for scrapers."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable

import pytest

from relay.core import metrics
from relay.core.errors import Unavailable
from relay.intake.lookups import Lookups
from relay.postgres.store import Store
from relay.redis.cache import Cache
from scripts.database import NewApiKey
from scripts.services import free_port


def counted(family: metrics.Family[metrics.Counter], *labels: str) -> int:
    return family.labels(*labels).value


def test_look_ups_are_counted_as_hits_and_misses(
    store: Store, cache: Cache, make_api_key: Callable[..., NewApiKey]
) -> None:
    lookups, key = Lookups(store, cache), make_api_key()
    token_hash = hashlib.sha256(key.token.encode()).hexdigest()
    names = [(kind, result) for kind in ("key", "suppression") for result in ("hit", "miss")]
    before = [counted(metrics.CACHE, *name) for name in names]
    lookups.api_key(token_hash)
    lookups.api_key(token_hash)
    known, unknown = (f"{uuid.uuid4().hex}@x.example" for _ in range(2))
    lookups.learned(key.user_id, {known: "bounce"})
    lookups.screen(token_hash, key.user_id, [known, unknown])
    assert [counted(metrics.CACHE, *name) - value for name, value in zip(names, before, strict=True)] == [2, 1, 1, 1]


def test_a_postgres_that_is_away_is_a_fault() -> None:
    before = counted(metrics.FAULTS, "postgres")
    store = Store(f"postgresql://nobody@127.0.0.1:{free_port()}/none", deadline=0.5)
    with pytest.raises(Unavailable):
        store.find_api_key("0" * 64)
    assert counted(metrics.FAULTS, "postgres") > before
    store.close()


def test_a_redis_that_is_away_is_a_fault() -> None:
    before = counted(metrics.FAULTS, "redis")
    cache = Cache(f"redis://127.0.0.1:{free_port()}/0")
    assert not cache.ping()
    assert counted(metrics.FAULTS, "redis") == before + 1
    cache.close()
