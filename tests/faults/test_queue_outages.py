"""The table of faults, as far as the queue is concerned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.outages import Fault
from tests.faults.queue_table import QUEUE


@pytest.mark.parametrize("fault", QUEUE, ids=lambda fault: fault.name)
def test_clients_hear_what_the_table_says_and_it_heals(befall: Callable[[Fault], None], fault: Fault) -> None:
    befall(fault)
