"""The wheel, built and installed as pip does it, outside of the checkout: the command, its version, a service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from relay import __version__
from scripts.services import free_port
from tests.support.service_process import PATIENCE, eventually

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("relay", "config", "requirements", "pyproject.toml", "README.md", "LICENSE")
#: What uv says where the index, which has the build's own requirement, can't be reached.
_NO_INDEX = ("Failed to fetch", "error sending request", "dns error", "Connection refused", "timed out")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pins = source / "requirements" / "build.txt"
    command = [sys.executable, "-m", "uv", "build", "--no-config", "--wheel", "--python", sys.executable]
    options = ["--build-constraints", str(pins), "--require-hashes", "--out-dir", str(source / "dist")]
    built = subprocess.run([*command, *options, str(source)], capture_output=True, text=True, check=False)
    if built.returncode and any(sign in built.stderr for sign in _NO_INDEX):
        pytest.skip(f"NOT TESTED: the wheel could not be built without the package index: {built.stderr[-300:]}")
    assert built.returncode == 0, built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and `bin`; the dependencies are those of the interpreter that runs this."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "uv", "pip", "install", "--no-config", "--quiet", "--offline", "--no-deps"]
    subprocess.run([*command, "--python", sys.executable, "--target", str(target), str(wheel)], check=True)
    return target


def environment(installed: Path, **variables: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PYTHONPATH": str(installed), **variables}


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(installed / "bin" / "opensend-relay"), *arguments],
            cwd=tmp_path,
            env=environment(installed, **variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return run


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    modules = {
        path.relative_to(ROOT).as_posix() for folder in ("relay", "config") for path in (ROOT / folder).rglob("*.py")
    }
    others = {"relay/py.typed", "config/py.typed", "config/schema.sql"}
    assert {name for name in names if ".dist-info/" not in name} == modules | others
    assert f"\nVersion: {__version__}\n" in metadata
    wanted = {
        line.partition(";")[0].strip()
        for line in (ROOT / "requirements" / "base.in").read_text().splitlines()
        if line and not line.startswith("#")
    }
    required = {line.split()[1].rstrip(";") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")}
    assert required == wanted


def test_the_command_runs_outside_of_the_checkout(run: Run) -> None:
    version = run("--version")
    assert (version.returncode, version.stdout) == (0, f"opensend-relay {__version__}\n")


def test_the_service_that_the_command_starts_is_healthy_and_ends_in_good_order(
    run: Run, installed: Path, tmp_path: Path
) -> None:
    settings = {
        "DATABASE_URL": f"postgres://nobody@127.0.0.1:{free_port()}/none",
        "SMTP_RELAY_HOST": "127.0.0.1",
        "SMTP_RELAY_PORT": str(free_port()),
    }
    command = [str(installed / "bin" / "opensend-relay"), "serve"]
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        service = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(installed, **settings),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        eventually("ready", lambda: b'"ready"' in log_path.read_bytes() or service.poll() is not None)
        assert service.poll() is None, log_path.read_text()
        healthy = run("health", **settings)
        assert (healthy.returncode, healthy.stdout) == (0, "relay: serves\n")
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE) == 0
        assert run("health", "relay", **settings).returncode == 1
    finally:
        if service.poll() is None:
            os.killpg(service.pid, signal.SIGKILL)
            service.wait()


def test_the_command_is_run_by_the_interpreter_that_it_was_installed_for(installed: Path) -> None:
    assert sysconfig.get_path("scripts") in (installed / "bin" / "opensend-relay").read_text()
