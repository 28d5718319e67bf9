"""What all the servers have in common: a process of ours that is started, watched and ended."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

from scripts.services.processes import family, kill

#: How long a server may take until it answers. Generous: disks can be slow, and a server that died is noticed at once.
START_SECONDS = 60.0
#: How long a server may take to stop before it is killed.
STOP_SECONDS = 30.0

#: Ports of servers here: above those that services commonly have, below Linux's ephemeral ones.
_LOWEST_PORT = 11_000
_LOWEST_CLIENT_PORT = 32_000

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # before any fork: a child between fork and exec must not load libraries


class ServiceFailed(Exception):
    """A server did not start. The text is one line, fit to be shown to a person."""


def free_port(host: str = "127.0.0.1", *, count: int = 1) -> int:
    """A TCP port without a listener at this moment, with `count - 1` others behind it.

    From below those that kernels give to clients: a connection of another program would else take a port before the
    server has it, or while the server is being restarted.
    """
    for _ in range(1000):
        # Not random's, which test libraries seed: two processes would look in the same places.
        first = _LOWEST_PORT + secrets.randbelow(_LOWEST_CLIENT_PORT - _LOWEST_PORT - count)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in range(first, first + count):
                probes.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)).bind((host, port))
            return first
    raise ServiceFailed(f"no free port on {host} between {_LOWEST_PORT} and {_LOWEST_CLIENT_PORT}")


class Server:
    """A process of ours that listens on a port: start, stop, kill, start again on the same port with the same data."""

    name: ClassVar[str]
    #: What makes the server finish in good order.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, directory: Path, port: int | None = None) -> None:
        """`directory` holds the server's data and log (`server.log`); it is made when it is missing."""
        self.directory = directory.resolve()
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> Self:
        """Starts the server and waits until it answers. Raises ServiceFailed."""
        self.spawn()
        self.wait_until_ready()
        return self

    def spawn(self) -> None:
        """The first half of `start`, so that several servers can come up side by side. Raises ServiceFailed."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._end_leftover()
        self.prepare()
        arguments = self.command()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.working_directory(),
                env=self.environment(),
                start_new_session=True,  # a Ctrl-C is for the program that started it, which stops it then
                preexec_fn=self._in_child(),  # noqa: PLW1509 - C calls only, and no other way to ask for these things
            )
        self._pid_path.write_text(json.dumps({"pid": self._process.pid, "arguments": arguments}))

    def wait_until_ready(self) -> None:
        """The second half of `start`. Raises ServiceFailed when the server ends or does not answer in START_SECONDS."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self._process.poll() is not None:
                raise ServiceFailed(f"{self.name} did not start: {self._last_words()} ({self.log_path})")
            if time.monotonic() > deadline:
                self.kill()
                raise ServiceFailed(f"{self.name} did not answer within {START_SECONDS:.0f} s ({self.log_path})")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the server in good order, by force after STOP_SECONDS. Does nothing when it isn't running."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(self.stop_signal)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                return
        self._process = None
        self._pid_path.unlink(missing_ok=True)

    def send_signal(self, number: signal.Signals) -> None:
        """To the server's first process, if it is still there."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the server and its children at once (SIGKILL), as a crash would. `start` brings it back."""
        if self._process is None:
            return
        kill(family(self._process.pid))
        self._process.wait()
        self._process = None
        self._pid_path.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """Of the running server's first process."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; says nothing about its health."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        return self.directory / "server.log"

    @property
    def _pid_path(self) -> Path:
        return self.directory / "process.json"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def prepare(self) -> None:
        """Makes what the server needs on disk."""

    def command(self) -> list[str]:
        """The server's command line; it must tell this instance from any other, `_end_leftover` goes by it."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server takes requests yet."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """The server's environment: ours, in English, without what would change a database tool's defaults."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**kept, "LC_ALL": "C"}

    def working_directory(self) -> Path:
        """Where the server runs."""
        return self.directory

    def _in_child(self) -> Callable[[], None]:
        end_with_us = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
        parent, stop_signal = os.getpid(), int(self.stop_signal)
        become = self._become()

        def in_child() -> None:
            become()
            if end_with_us:
                _libc.prctl(_PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(1)

        return in_child

    def _become(self) -> Callable[[], None]:
        return lambda: None

    def _last_words(self) -> str:
        said = self.log_path.read_bytes()[self._log_start :].decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        telling = [line for line in lines[-20:] if "FATAL" in line or "error" in line.lower()]
        return (telling or lines or ["it said nothing"])[-1]

    def _end_leftover(self) -> None:
        """Ends what a killed predecessor of ours left running in this directory."""
        try:
            left = json.loads(self._pid_path.read_text())
            process = psutil.Process(left["pid"])
            if process.cmdline() != left["arguments"]:
                return  # the number has gone to another process since
            process.send_signal(self.stop_signal)
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                kill(family(left["pid"]))
        except (FileNotFoundError, ValueError, KeyError, psutil.NoSuchProcess):
            return


def start_together(*servers: Server) -> None:
    """Starts several servers side by side. Raises ServiceFailed; then none of them is left running."""
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_until_ready()
    except BaseException:
        for server in servers:
            server.stop()
        raise


def program(package: str, pattern: str) -> Path:
    """A program out of an installed wheel, which isn't imported: both wheels do more at import than is wanted here."""
    wheel = importlib.util.find_spec(package)
    for root in (wheel.submodule_search_locations or ()) if wheel else ():
        for path in Path(root).glob(pattern):
            return path
    raise ServiceFailed(f"the package {package} is not installed, or not for this machine")


def secret(path: Path) -> str:
    """The password in a file that only we can read, made at the first call."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.new")
        fresh.touch(mode=0o600)
        fresh.write_text(secrets.token_urlsafe(24))
        fresh.replace(path)
    return path.read_text()
