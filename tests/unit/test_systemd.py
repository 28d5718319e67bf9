"""The units under docs/systemd are valid, and leave a process little more than it needs. Needs systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).resolve().parents[2] / "docs" / "systemd").glob("*.service"))
#: Exposure, of 10, that `systemd-analyze security` may find.
MOST_EXPOSED = 2.5

analyse = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def test_there_is_a_unit_for_each_process_of_the_procfile() -> None:
    procfile = (Path(__file__).resolve().parents[2] / "Procfile").read_text()
    commands = {line.split(": ", 1)[1] for line in procfile.splitlines()}
    started = {re.search(r"^ExecStart=\S+/python (.*)$", unit.read_text(), re.MULTILINE)[1] for unit in UNITS}  # type: ignore[index]
    assert {f"python {arguments}" for arguments in started} == commands


@analyse
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_valid(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/opensend-relay/.venv/bin/python", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False)
    assert unit.stem not in verified.stderr
    assert verified.returncode == 0


@analyse
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_closed(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={round(MOST_EXPOSED * 10)}", str(unit)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
