"""`scripts/bootstrap.py` changes no environment but that in the folder of its checkout."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BOOTSTRAP = Path(__file__).resolve().parents[2] / "scripts" / "bootstrap.py"


def test_an_environment_behind_a_link_is_not_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several checkouts may share it, and a lock of this one keeps none of them away."""
    shared, checkout = tmp_path / "shared", tmp_path / "checkout"
    shared.mkdir()
    (shared / "installed.txt").write_text("of another checkout")
    (checkout / "requirements").mkdir(parents=True)
    (checkout / "scripts").mkdir()
    (checkout / "requirements" / "dev.txt").write_text("of this one")
    (checkout / ".venv").symlink_to(shared)
    copy = checkout / "scripts" / "bootstrap.py"
    copy.write_text(BOOTSTRAP.read_text("utf-8"), "utf-8")
    program = runpy.run_path(str(copy))
    # Where the refusal is missing, nothing is run either.
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(SystemExit, match=r"\.venv is a link"):
        program["main"]("test")
    assert [each.name for each in shared.iterdir()] == ["installed.txt"]
