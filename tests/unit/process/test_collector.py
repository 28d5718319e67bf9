"""How often Python's collector looks for cycles in a process that serves."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.process.collector import COLLECT_AFTER, collect_seldom

PROCESSES = Path(__file__).parents[3] / "relay" / "process"


@pytest.fixture
def collector() -> Iterator[None]:
    """Leaves it as it was."""
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("collector")
def test_what_is_there_is_looked_at_no_more_and_the_rest_seldom() -> None:
    gc.unfreeze()
    collect_seldom()
    assert gc.get_threshold()[0] == COLLECT_AFTER
    assert gc.get_freeze_count() > 10_000


@pytest.mark.parametrize("name", ["worker", "delivery", "web"])
def test_each_process_that_serves_says_so(name: str) -> None:
    """By its text: to import these modules patches the standard library."""
    assert "\n    collect_seldom()\n" in (PROCESSES / f"{name}.py").read_text(encoding="utf-8")
