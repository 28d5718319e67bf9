"""Nothing that was answered by 250 is lost, whatever is killed, and nobody gets it twice."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import psutil

from tests.faults.kills import kill_at_random
from tests.faults.load import Fate, make_mail
from tests.faults.stage import Stage


def test_kill_9_at_random_moments_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    with Stage(tmp_path, WEB_CONCURRENCY="2") as stage:
        outcome = kill_at_random(stage, 10, clients=6, seconds=90)
        outcome.books.check()
        assert outcome.kills.total() >= 3, outcome
        stage.check_log()


def test_a_process_for_large_messages_whose_parent_is_killed_ends_without_a_word(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        with contextlib.closing(stage.talk()) as client:
            assert client.deliver(make_mail(1, size=60_000)).fate is Fate.ACCEPTED
            (worker,) = stage.workers()
            (large,) = worker.children()
            stage.postgres_proxy.delay_to_client = 0.5
            thread = threading.Thread(target=client.deliver, args=(make_mail(2, size=60_000),))
            thread.start()
            time.sleep(0.3)
            worker.kill()
            thread.join()
        psutil.wait_procs([large], timeout=20)
        assert not large.is_running()
        stage.check_log()
