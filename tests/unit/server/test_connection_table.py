"""Connections counted over processes that share nothing but memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from relay.server import connection_table
from relay.server.connection_table import ConnectionTable

ROOT = Path(__file__).resolve().parents[3]
ANN, BOB = b"ann-----", b"bob-----"


def test_full() -> None:
    counted = ConnectionTable(None, 0, 1, 3)
    slots = [counted.enter() for _ in range(3)]
    assert len(set(slots)) == 3
    assert counted.enter() is None
    assert slots[1] is not None
    counted.leave(slots[1])
    assert len(counted) == 2
    assert counted.enter() == slots[1]


def test_each_origin_has_its_own_count() -> None:
    counted = ConnectionTable(None, 0, 1, 10)
    slots = [slot for slot in (counted.enter() for _ in range(6)) if slot is not None]
    assert [counted.name(slot, ANN) for slot in slots[:4]] == [1, 2, 3, 4]
    assert counted.name(slots[4], BOB) == 1
    counted.leave(slots[0])
    assert counted.name(slots[5], ANN) == 4


def test_workers_see_each_other() -> None:
    descriptor = connection_table.share(3, 4)
    workers = [ConnectionTable(descriptor, index, 3, 4) for index in range(3)]
    os.close(descriptor)
    slots = [worker.enter() for worker in workers]
    assert None not in slots
    assert [worker.name(slot, ANN) for worker, slot in zip(workers, slots, strict=True) if slot is not None] == [
        1,
        2,
        3,
    ]
    assert workers[2].enter() == 1  # the fourth and last, all on one worker if need be
    assert [worker.enter() for worker in workers] == [None, None, None]


def test_a_successor_wipes_clean_what_a_dead_worker_left() -> None:
    descriptor = connection_table.share(2, 10)
    survivor = ConnectionTable(descriptor, 0, 2, 10)
    # Not a fork: this process may have threads.
    program = (
        "import sys; from relay.server.connection_table import ConnectionTable;"
        f" table = ConnectionTable({descriptor}, 1, 2, 10); [table.name(table.enter() or 0, {ANN!r}) for _ in range(4)]"
    )
    subprocess.run([sys.executable, "-c", program], pass_fds=[descriptor], cwd=ROOT, check=True)
    assert len(survivor) == 4
    ConnectionTable(descriptor, 1, 2, 10)
    os.close(descriptor)
    assert len(survivor) == 0
    slot = survivor.enter()
    assert slot is not None
    assert survivor.name(slot, ANN) == 1


def test_coming_and_going() -> None:
    chance = random.Random(5)
    counted = ConnectionTable(None, 0, 1, 50)
    present: dict[int, bytes] = {}
    for _ in range(5000):
        if present and chance.random() < 0.5:
            slot = chance.choice(list(present))
            counted.leave(slot)
            del present[slot]
        elif (entered := counted.enter()) is not None:
            assert entered not in present
            present[entered] = chance.choice((ANN, BOB))
            whose = present[entered]
            assert counted.name(entered, whose) == list(present.values()).count(whose)
        else:
            assert len(present) == 50
        assert len(counted) == len(present)
