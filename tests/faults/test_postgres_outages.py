"""The table of faults, as far as Postgres is concerned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.outages import Fault
from tests.faults.postgres_table import POSTGRES


@pytest.mark.parametrize("fault", POSTGRES, ids=lambda fault: fault.name)
def test_clients_get_the_replies_of_the_table_and_it_recovers(befall: Callable[[Fault], None], fault: Fault) -> None:
    befall(fault)
