"""The first and the last moments of a forked process. Nothing but the standard library: the master imports this."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

#: What the master attends to, and its children have to forget.
HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

# Of the standard library as it is before gevent patches it: with gevent's own, a process that only forks others would
# get a hub.
_fork: Final = os.fork
_waitpid: Final = os.waitpid
_close: Final = os.close


def fork(body: Callable[[], int | None]) -> int:
    """Forks a process that does the body and nothing else, with the signals of `HANDLED` blocked; its process id.

    Raises OSError. The body is expected to call `unblock_signals`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = _fork()
        if pid == 0:
            end_child(body)
    finally:
        # Not in the child, which never gets here.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def fork_orphan(body: Callable[[], int | None]) -> int:
    """As `fork`, but the process becomes a child of the nearest ancestor that takes in orphans: see `adopt_orphans`.

    When this returns it has become that. Raises OSError.
    """
    reading, writing = os.pipe()
    try:
        try:
            between = fork(lambda: _fork_and_tell(body, reading, writing))
        finally:
            _close(writing)
        told = b"".join(iter(lambda: os.read(reading, 64), b""))
        _waitpid(between, 0)
    finally:
        _close(reading)
    pid = int(told or b"0")
    if pid <= 0:
        raise OSError(-pid, "fork")
    return pid


def _fork_and_tell(body: Callable[[], int | None], reading: int, writing: int) -> None:
    _close(reading)
    try:
        pid = _fork()
    except OSError as error:
        pid = -(error.errno or 0)
    if pid == 0:
        _close(writing)
        end_child(body)
    os.write(writing, str(pid).encode("ascii"))


def adopt_orphans() -> bool:
    """Makes this process the parent of whatever its children leave behind; whether it is that now. Linux only."""
    import ctypes  # noqa: PLC0415 - half a megabyte, for the master alone

    try:
        # PR_SET_CHILD_SUBREAPER of prctl(2), which the standard library does not have.
        return sys.platform == "linux" and bool(ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def forget_signals() -> None:
    """In a child of the master: signals are not the master's any more, they do what they do by default."""
    _close(signal.set_wakeup_fd(-1))
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)


def unblock_signals() -> None:
    """In a child: takes the signals that have waited since `fork`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def end_child(body: Callable[[], int | None]) -> NoReturn:
    """Runs the body as all that this forked process does: nothing of its parent's stack may run in it afterwards."""
    status = 1
    try:
        status = body() or 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - the last frame of this process: it is shown, and is in the status
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
