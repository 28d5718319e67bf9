"""The table of faults, as far as the queue is concerned."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.load import Fate, make_mail
from tests.faults.outages import Fault
from tests.faults.queue_table import QUEUE
from tests.faults.stage import Stage, wait_until


@pytest.mark.parametrize("fault", QUEUE, ids=lambda fault: fault.name)
def test_clients_get_the_replies_of_the_table_and_it_recovers(befall: Callable[[Fault], None], fault: Fault) -> None:
    befall(fault)


#: Seconds for which the queue takes everything and says nothing that arrives: several times what a call may take.
LOST_SECONDS = 45.0


def test_lost_answers_make_few_jobs_come_twice(stage: Callable[..., Stage]) -> None:
    ground = stage()
    ids = []
    ground.sqs_proxy.drop_to_client = True
    until = time.monotonic() + LOST_SECONDS
    with contextlib.closing(ground.talk()) as client:
        for number in range(100):
            attempt = client.deliver(make_mail(number))
            assert attempt.fate is Fate.ACCEPTED
            ids.append(attempt.email_id)
            time.sleep(0.01)
    time.sleep(max(0.0, until - time.monotonic()))
    ground.sqs_proxy.heal()
    wait_until(lambda: set(ids) <= set(ground.jobs()), "all jobs are there", seconds=30)
    time.sleep(2.0)
    counted = Counter(ground.jobs())
    print(
        f"{counted.total() - len(counted)} further jobs for {len(ids)} mails, at most {max(counted.values())} for one"
    )
    assert max(counted.values()) <= 2
    assert counted.total() - len(counted) <= 40
