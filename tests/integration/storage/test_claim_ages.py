"""How old a claim is: the same claim made again is no younger."""

from __future__ import annotations

import time

from relay.redis.cache import Cache
from relay.redis.claims import Claim


def test_a_claim_that_is_made_again_keeps_its_age(cache: Cache) -> None:
    """A holder that has died is displaced by the age of its claim: it must not depend on who asked since."""
    holder, other = (Claim(b"message", "user", name, 60) for name in ("one", "two"))
    assert cache.take(holder, {"a@x.example": None}) == {}
    time.sleep(0.3)
    assert cache.take(holder, {"a@x.example": None}) == {}
    held = cache.take(other, {"a@x.example": None})["a@x.example"]
    assert held.email_id == "one"
    assert held.age_ms >= 250
