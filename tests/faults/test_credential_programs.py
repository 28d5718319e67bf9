"""Credentials that a program gives, and doesn't: mail is accepted, and its jobs follow once they can."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.services import processes
from tests.faults.load import Fate, make_mail
from tests.faults.stage import Stage, wait_until

GOOD = """print('{"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test"}')"""
#: The first question hangs, with a child that holds its output open.
HANGING_ONCE = """
import os, pathlib, subprocess, time
mark = pathlib.Path(__file__).with_suffix(".asked")
if not mark.exists():
    child = subprocess.Popen(["sleep", "1000"])
    mark.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(1000)
"""


@pytest.fixture
def start(stage: Callable[..., Stage], tmp_path: Path) -> Callable[[str | None], tuple[Stage, Callable[[str], None]]]:
    """Starts a relay whose credentials come from a program with this code, and returns a way to replace it."""
    program = tmp_path / "program"

    def replace(code: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f"#!{sys.executable}\n{code}\n")
        fresh.chmod(0o700)
        fresh.rename(program)

    def begin(code: str | None) -> tuple[Stage, Callable[[str], None]]:
        if code is not None:
            replace(code)
        profiles = tmp_path / "profiles"
        profiles.write_text(f"[profile p]\ncredential_process = {program}\n")
        made = stage(
            AWS_CONFIG_FILE=str(profiles),
            AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
            AWS_PROFILE="p",
            AWS_ACCESS_KEY_ID="",
            AWS_SECRET_ACCESS_KEY="",
        )
        return made, replace

    return begin


def deliver(ground: Stage, count: int, start: int = 1) -> set[str]:
    client = ground.talk()
    attempts = [client.deliver(make_mail(number)) for number in range(start, start + count)]
    client.close()
    assert {attempt.fate for attempt in attempts} == {Fate.ACCEPTED}
    return {attempt.email_id for attempt in attempts}


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(None, id="missing"),
        pytest.param("raise SystemExit(1)", id="failing"),
        pytest.param("print('rubbish')", id="talking rubbish"),
        pytest.param(HANGING_ONCE + GOOD, id="hanging"),
        pytest.param("while True: print('x' * 10000)", id="without end"),
    ],
)
def test_jobs_flow_once_the_program_is_good(
    start: Callable[[str | None], tuple[Stage, Callable[[str], None]]], first: str | None, tmp_path: Path
) -> None:
    ground, replace = start(first)
    ids = deliver(ground, 5)
    if "asked" not in (first or ""):
        time.sleep(1.0)
        assert ground.jobs() == []
    if first is None:
        # There and gone again before it is good: each way to fail is another.
        replace("raise SystemExit(1)")
        time.sleep(1.0)
        (tmp_path / "program").unlink()
        time.sleep(1.0)
    if "asked" not in (first or ""):
        replace(GOOD)
    wait_until(lambda: set(ground.jobs()) == ids, "jobs flow", seconds=60)
    ids |= deliver(ground, 5, start=6)
    wait_until(lambda: set(ground.jobs()) == ids, "jobs flow on", seconds=30)
    assert sorted(ground.jobs()) == sorted(ids), "each once"
    lines = ground.log_lines()
    assert not [line for line in lines if "Traceback" in line or "uncaught" in line]
    assert len([line for line in lines if "queue_unavailable" in line]) <= 3
    if "asked" in (first or ""):
        for pid in (tmp_path / "program.asked").read_text().split():
            assert processes.ended(int(pid))
