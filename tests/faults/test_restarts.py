"""Servers that die under load and come back."""

from __future__ import annotations

from pathlib import Path

from tests.faults.restarts import restart_servers
from tests.faults.stage import Stage


def test_postgres_valkey_and_the_queue_die_under_load_and_come_back(tmp_path: Path) -> None:
    with Stage(tmp_path, WEB_CONCURRENCY="2") as stage:
        pid = stage.relay.pid
        outcome = restart_servers(stage, 2, queue_away=3.0, clients=6, pause=0.1)
        assert (stage.relay.pid, stage.relay.running) == (pid, True)
        outcome.books.check(redis_forgot=True)
        stage.check_log()
