"""Nothing that was answered by 250 is lost, whatever is killed, and nobody gets it twice."""

from __future__ import annotations

from pathlib import Path

from tests.faults.kills import kill_at_random
from tests.faults.stage import Stage


def test_kill_9_at_random_moments_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    with Stage(tmp_path, WEB_CONCURRENCY="2") as stage:
        outcome = kill_at_random(stage, 10, clients=6, seconds=90)
        outcome.books.check()
        assert outcome.kills.total() >= 3, outcome
        stage.check_log()
