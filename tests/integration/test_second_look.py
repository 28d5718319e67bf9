"""What was true at AUTH is looked at again for each message."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import redis

from scripts.database import NewApiKey
from tests.support.relay_process import Relay
from tests.support.transaction import compose, queued_id, send


def test_a_restriction_that_comes_after_the_login_counts_for_the_next_message(
    relay: Relay, api_key: NewApiKey, query: Callable[..., list[dict[str, Any]]], redis_url: str
) -> None:
    """A key is restricted to a domain while its session is open, as the dashboard does it."""
    with relay.client(api_key.token) as client:
        queued_id(send(client, compose()))
        query("UPDATE api_keys SET domain = 'other.example'")
        with redis.Redis.from_url(redis_url) as shared:
            shared.delete(f"auth:apikey:{hashlib.sha256(api_key.token.encode()).hexdigest()}")
        code, text = send(client, compose(Subject="again"))
        assert (code, text[:5]) == (550, "5.7.1")
        queued_id(send(client, compose(From="ann@other.example", Subject="third")))
    assert len(query("SELECT 1 FROM emails")) == 2
