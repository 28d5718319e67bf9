"""Makes or renews the checkout's `.venv`, then becomes the program that was asked for. Run by `scripts/launch`.

Only the standard library, since nothing else is there yet. `.venv/installed.txt` is a copy of the requirements that
were installed, written last: as long as both are the same, the environment is whole. A process that uses the
environment holds a shared lock on `.dev/venv.lock`, one that changes it an exclusive one.
"""

from __future__ import annotations

import fcntl
import filecmp
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = ROOT / "requirements" / "dev.txt"
INSTALLED = VENV / "installed.txt"
STATE = ROOT / ".dev"


def main(program: str, *arguments: str) -> NoReturn:
    """Runs the module `scripts.<program>` with the environment's Python, in this process's place."""
    STATE.mkdir(exist_ok=True)
    lock = os.open(STATE / "venv.lock", os.O_RDWR | os.O_CREAT, 0o644)
    announced = False
    while not (_try(lock, fcntl.LOCK_SH) and _whole()):
        if _try(lock, fcntl.LOCK_EX):
            if not _whole():
                _install()
            continue
        fcntl.flock(lock, fcntl.LOCK_UN)
        if not announced:
            print("Waiting for another command in this checkout, since .venv is about to change …", file=sys.stderr)
            announced = True
        time.sleep(0.2)
    os.set_inheritable(lock, True)  # the lock lasts as long as the program
    python = str(VENV / "bin" / "python")
    os.environ.pop("PYTHONHOME", None)
    os.environ["PYTHONPATH"] = str(ROOT)
    # -P: neither the current directory nor the scripts' own gets into the module path
    os.execv(python, [python, "-P", "-m", f"scripts.{program}", *arguments])  # noqa: S606 - no shell wanted


def _try(lock: int, mode: int) -> bool:
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _whole() -> bool:
    return INSTALLED.exists() and filecmp.cmp(INSTALLED, REQUIREMENTS, shallow=False)


def _install() -> None:
    base = getattr(sys, "_base_executable", None) or sys.executable
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SystemExit(f"{base} comes without venv; on Debian or Ubuntu: apt install python{version}-venv")
    if VENV.is_symlink():
        # Other checkouts may use what it leads to, and their locks are elsewhere.
        raise SystemExit(
            f"{VENV} is a link, and {VENV.resolve()} has not got the packages of this checkout: it is not changed by"
            " way of the link. Remove the link for an environment that belongs to this checkout."
        )
    INSTALLED.unlink(missing_ok=True)
    log_path = STATE / "install.log"
    total = sum(1 for line in REQUIREMENTS.read_text().splitlines() if line[:1].isalnum())
    print(f"Installing {total} packages into .venv, once (about a minute) …", flush=True)
    for name in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PYTHONPATH", "PYTHONHOME"):
        os.environ.pop(name, None)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with log_path.open("w", encoding="utf-8") as log:
        _run([base, "-m", "venv", "--clear", str(VENV)], log_path, log, total)
        _run([*pip, "install", "--require-hashes", "-r", str(REQUIREMENTS)], log_path, log, total)
        # flanker writes tables beside its code at its first import, and two processes at once would trip over that
        _run([str(VENV / "bin" / "python"), "-c", "import flanker.addresslib.address"], log_path, log, total)
    fresh = INSTALLED.with_suffix(".new")
    fresh.write_bytes(REQUIREMENTS.read_bytes())
    fresh.replace(INSTALLED)


def _run(command: list[str], log_path: Path, log, total: int) -> None:  # type: ignore[no-untyped-def]
    """Runs one step with all its output in the log, and on a terminal a count of the packages."""
    seen = 0
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            if line.startswith("Collecting ") and sys.stdout.isatty():
                seen += 1
                print(f"\r\033[K  {min(seen, total)}/{total} {line.split()[1]}", end="", flush=True)
    if seen:
        print("\r\033[K", end="", flush=True)
    if process.returncode != 0:
        log.flush()
        raise SystemExit(
            f"Could not make .venv: {_reason(log_path.read_text(encoding='utf-8'))} (all of it: {log_path})"
        )


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "No space left on device" in output:
        return "no space left on the disk"
    if any(sign in output for sign in ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError")):
        return "the Python package index can't be reached; is there a network, is a proxy needed?"
    # pip goes on after these, to an error that names the package but not the cause
    causes = [line for line in lines if line.startswith("Could not fetch URL")]
    return (causes or errors or lines or ["no reason was given"])[-1]


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        raise SystemExit("usage: ./scripts/launch NAME [ARGUMENT...], where scripts/NAME.py is a program")
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"Could not make .venv: {error.strerror}: {error.filename or ROOT}")
