"""What processes are forked from keeps no hub, and its code is out of the collector's sight."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from gevent._hub_local import get_hub_if_exists
from relay.process import fork_ready
if {with_hub}:
    import gevent
    gevent.sleep(0)
    assert get_hub_if_exists() is not None
fork_ready.settle()
assert get_hub_if_exists() is None
assert gc.get_freeze_count() > 0
"""


@pytest.mark.parametrize("with_hub", [False, True])
def test_no_hub_is_inherited(with_hub: bool) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM.format(with_hub=with_hub)], check=True, timeout=60)
