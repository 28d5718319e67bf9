"""Memory of a delivery process with large mails among small ones, as the kernel counts it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.benchmark.delivery_memory import measure
from scripts.services import Ses


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are Linux's")
def test_two_mails_of_39_mb_among_twenty_fit_into_150_mb(postgres_url: str, ses: Ses, tmp_path: Path) -> None:
    """VmHWM, the most that a process ever had; 40 MB of it are code that it shares with the master.

    Measured: 114 MB with HTML, of which one whole copy is held while its links are looked for, 70 MB with an
    attachment. Two copies of either would be above the limit.
    """
    high_water, _ = measure(postgres_url, ses, ("html", "attachment"), 39_000_000, tmp_path)
    assert high_water <= 150_000_000, high_water
    assert [len(taken.octets) > 38_000_000 for taken in ses.taken()].count(True) == 2
