"""What the log says of a Postgres that is away: at once, then once in a while, and with the reason in words."""

from __future__ import annotations

import time

import gevent
import pytest
import structlog.testing

from relay.postgres import database as module
from relay.postgres.database import ConnectionLost, Database
from scripts.services import free_port


@pytest.fixture
def away() -> Database:
    """A database whose server is not there."""
    return Database(f"postgres://u:hunter2@127.0.0.1:{free_port()}/x", statement_seconds=1.0, idle_limit=1)


def test_it_is_said_at_once_and_again_without_any_client(away: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REPORT_SECONDS", 0.02)
    away.first_pause = away.longest_pause = 0.0
    with structlog.testing.capture_logs() as lines:
        away.watch()
        with gevent.Timeout(30):
            while len(lines) < 3:
                gevent.sleep(0.01)
        away.close()
        gevent.sleep(0.1)
        count = len(lines)
        gevent.sleep(0.1)
    assert len(lines) == count
    assert {(line["event"], line["cause"]) for line in lines} == {
        ("postgres_unavailable", "the connection was refused")
    }
    assert "hunter2" not in str(lines)


def test_it_is_not_said_for_each_client(away: Database) -> None:
    away.first_pause = away.longest_pause = 0.0
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            with pytest.raises(ConnectionLost):
                away.connect(time.monotonic() + 5)
    assert len(lines) == 1
