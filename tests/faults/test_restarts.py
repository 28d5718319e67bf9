"""Servers that die under load and come back."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.restarts import restart_servers
from tests.faults.stage import Stage


def test_postgres_valkey_and_the_queue_die_under_load_and_come_back(stage: Callable[..., Stage]) -> None:
    ground = stage(WEB_CONCURRENCY="2")
    pid = ground.relay.pid
    outcome = restart_servers(ground, 2, queue_away=3.0, clients=6, pause=0.1)
    assert (ground.relay.pid, ground.relay.running) == (pid, True)
    outcome.books.check(redis_forgot=True)
    ground.check_log()
