"""Memory in one piece, and back to the kernel: as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

_PROGRAM = """
from relay.process.heap import Heap

def status(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

heap = Heap()
before = status("VmRSS")
heap.in_one_piece(100_000_000)
mapped = len(open("/proc/self/maps").readlines())
pieces = [bytes([number]) * 10_000_000 for number in range(5)]
assert status("VmRSS") - before >= 50_000_000
assert len(open("/proc/self/maps").readlines()) == mapped, "no mapping for each piece"
del pieces
assert status("VmRSS") - before >= 45_000_000, "it is kept for the next message"
heap.trim()
assert status("VmRSS") - before <= 5_000_000, "it is given back"
heap.by_pieces()
piece = bytes(10_000_000 * [1])
held = status("VmRSS")
del piece
assert held - status("VmRSS") >= 9_000_000, "it is given back at once"
print("ok")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are Linux's")
def test_memory_in_one_piece_is_kept_until_it_is_trimmed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr
