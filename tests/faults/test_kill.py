"""Nothing that was answered by 250 is lost, whatever is killed, and no recipient gets it twice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import psutil

from scripts.services import processes
from tests.faults.kills import kill_at_random
from tests.faults.load import Fate, make_mail
from tests.faults.stage import Stage

SetUp = Callable[..., Stage]


def test_kill_9_at_random_moments_loses_nothing_and_doubles_nothing(stage: SetUp) -> None:
    ground = stage(WEB_CONCURRENCY="2")
    outcome = kill_at_random(ground, 10, clients=6, seconds=60, between=5)
    outcome.books.check()
    assert outcome.kills.total() >= 3, outcome
    ground.check_log()


def test_a_process_for_large_messages_whose_parent_is_killed_ends_without_a_word(stage: SetUp) -> None:
    ground = stage()
    with contextlib.closing(ground.talk()) as client:
        assert client.deliver(make_mail(1, size=60_000)).fate is Fate.ACCEPTED
        (worker,) = ground.workers()
        (large,) = processes.children(worker.pid)
        ground.postgres_proxy.delay_to_client = 0.5  # so that it has something in hand
        thread = threading.Thread(target=client.deliver, args=(make_mail(2, size=60_000),))
        thread.start()
        time.sleep(0.3)
        worker.kill()
        thread.join()
    psutil.wait_procs([large], timeout=20)
    assert processes.ended(large)
    ground.check_log()
