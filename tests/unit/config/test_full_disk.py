"""Lines on a disk that fills up: each is there as a whole or not at all, and those that are not are counted.

A limit on the size of files stands in for the disk: the kernel takes what fits, then refuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent.parent

#: Writes lines of a growing length until well past the limit, lifts it, and writes more.
PROGRAM = """
import os, resource, sys
import structlog
import config.logging
from config.settings import Settings
limit, processes = int(sys.argv[1]), int(sys.argv[2])
reading, writing = os.pipe()
for _ in range(processes - 1):
    os.fork()
config.logging.configure(Settings(database_url="postgres://nowhere/x", log_format="json"))
log = structlog.get_logger("test")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
for number in range(40):
    log.info("before", number=number, filler="x" * number)
# A disk has room for all processes at the same time.
os.close(writing)
os.read(reading, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
for number in range(3):
    log.info("after", number=number)
"""


def run(path: Path, limit: int, *, processes: int = 1, mode: int = os.O_APPEND) -> list[dict[str, Any]]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | mode)
    try:
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(limit), str(processes)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=descriptor,
            check=True,
            timeout=60,
        )
    finally:
        os.close(descriptor)
    octets = path.read_bytes()
    assert octets.endswith(b"\n")
    return [json.loads(line) for line in octets.splitlines()]


@pytest.mark.parametrize("mode", [os.O_APPEND, 0])
@pytest.mark.parametrize("limit", [0, 1, 1000, 1033, 1067, 1099, 1100, 1101, 2500])
def test_no_line_is_cut_and_the_lost_are_counted(tmp_path: Path, limit: int, mode: int) -> None:
    found = run(tmp_path / "log", limit, mode=mode)
    kept = [line["number"] for line in found if line["event"] == "before"]
    # What a shorter line still found room for may follow one that was lost.
    assert kept == sorted(kept)
    assert len(kept) < 40
    assert [line["number"] for line in found if line["event"] == "after"] == [0, 1, 2]
    assert sum(line["count"] for line in found if line["event"] == "log_lines_lost") == 40 - len(kept)


@pytest.mark.parametrize("mode", [os.O_APPEND, 0])
def test_several_processes_cut_nothing_of_each_other(tmp_path: Path, mode: int) -> None:
    found = run(tmp_path / "log", 2000, processes=3, mode=mode)
    after = [line for line in found if line["event"] == "after"]
    assert after


@pytest.mark.parametrize("mode", [os.O_APPEND, 0])
def test_a_line_of_another_process_stays_that_comes_while_one_is_taken_back(tmp_path: Path, mode: int) -> None:
    """It is shorter, so there is room for it as soon as the file is."""
    code = """
import os, resource
from config import line_output
line_output.append()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
assert line_output.write_line(b"a" * 70 + b"\\n")
shorten = os.ftruncate
def interrupted(descriptor, size):
    shorten(descriptor, size)
    if not os.fork():
        os.write(1, b"other\\n")
        os._exit(0)
    os.wait()
os.ftruncate = interrupted
assert not line_output.write_line(b"b" * 70 + b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert line_output.write_line(b"c\\n")
"""
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=descriptor, check=True, timeout=60
        )
    finally:
        os.close(descriptor)
    assert path.read_bytes().splitlines() == [b"a" * 70, b"other", b"c"]


def test_a_line_longer_than_a_pipe_has_room_for_does_not_wait(tmp_path: Path) -> None:
    """Nothing is read. A pipe is ready for writing as soon as a page fits, which is less than this line."""
    code = (
        PROGRAM.partition("hard =")[0]
        + """
for number in range(200):
    log.info("long", number=number, filler="x" * 6000)
assert config.logging.LineLogger.lost > 100
"""
    )
    reading, writing = os.pipe()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code, "0", "1"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=writing,
            check=False,
            timeout=60,
        )
        assert ended.returncode == 0
        os.close(writing)
        writing = -1
        with open(reading, "rb", closefd=False) as pipe:
            numbers = [json.loads(line)["number"] for line in pipe]
        assert numbers == list(range(len(numbers)))
        assert numbers
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
