"""The relay as its operator runs it: a separate process, on real servers."""

from __future__ import annotations

from tests.support.relay_fixtures import api_key, query, relay, start_relay

__all__ = ["api_key", "query", "relay", "start_relay"]
