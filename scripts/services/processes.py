"""Processes of other programs, which may end between two questions about them.

Every other module asks through here: psutil raises for a process that has ended since it was found, and a list of
several is lost for one of them.
"""

from __future__ import annotations

import contextlib
import os
import signal

import psutil


def children(pid: int, *, recursive: bool = False) -> list[psutil.Process]:
    """What a process has started and what still runs, with `recursive` all that descend from it; none if it ended."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children(recursive=recursive)
    return [child for child in found if not ended(child)]


def family(pid: int) -> list[psutil.Process]:
    """A process, if it still runs, and all that descend from it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *children(pid, recursive=True)]
    return []


def named(name: str, found: list[psutil.Process]) -> list[psutil.Process]:
    """Those of them that have this name."""
    return [process for process in found if name_of(process) == name]


def serving(master: int) -> list[psutil.Process]:
    """A master's children that serve: all but the template that they are forked from, and what has ended."""
    return [child for child in children(master) if not (name_of(child) or "relay-gone").startswith("relay-")]


def name_of(process: psutil.Process) -> str:
    """The name of a process; empty if it ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""


def ended(process: psutil.Process | int) -> bool:
    """Whether a process, or the one with this pid, runs no more. A zombie doesn't."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def send(found: list[psutil.Process], number: int) -> None:
    """Sends a signal to those of them that still run."""
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            process.send_signal(number)


def kill(found: list[psutil.Process]) -> None:
    """SIGKILL for those of them that still run."""
    send(found, signal.SIGKILL)


def in_group(group: int) -> list[psutil.Process]:
    """All processes of a process group, whatever their parents are now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and not ended(process):
                found.append(process)
    return found
