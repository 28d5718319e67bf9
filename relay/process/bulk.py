"""The process for large messages: it forks children for them, and says what ended those that ended without a verdict.

A worker forks it before it starts anything else, so that it has everything loaded and nothing running: what it forks in
turn reads no file of the program, whatever has become of those since the service started. It parses nothing, opens no
connection and keeps nothing of a message, so that hardly anything can end it; should something do so all the same, a
second one stands ready, which the first forked at its own start.

It ends when its worker does, and its children with it.
"""

from __future__ import annotations

import _socket as _sockets
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from gevent.monkey import get_original

from config.settings import Settings
from relay.intake.bulk_protocol import CHILD, SUCCESSOR, Died, encode_report, send_message
from relay.process import bulk_child

# gevent's own would make a hub, which the children would inherit.
_fork: Final = get_original("os", "fork")
_signal: Final = get_original("signal", "signal")
_waitpid: Final = get_original("os", "waitpid")
_select: Final = get_original("select", "select")

#: What a terminal or a platform sends to every process of a service. The worker attends to it; this one ends with it.
_LEFT_TO_THE_WORKER: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: The names of these processes where an operator looks at them, 15 octets at most.
_NAME: Final = "relay-large"
_CHILD_NAME: Final = "relay-parse"


def start(settings: Settings) -> list[int]:
    """Forks the process and its successor; the descriptors of their channels, for `relay.intake.bulk_lane`.

    To be called before the process has a hub, a thread or a connection: they would be on both sides.
    """
    ours, theirs = zip(*(_channel() for _ in range(2)), strict=True)
    if _fork() == 0:
        _serve(settings, theirs[0], successor=theirs[1])
    for descriptor in theirs:
        os.close(descriptor)
    return list(ours)


def _channel() -> tuple[int, int]:
    """Two descriptors: what is written to one is read from the other."""
    ours, theirs = _sockets.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours.detach(), theirs.detach()


def _serve(settings: Settings, channel: int, *, successor: int | None = None) -> NoReturn:
    """All that a forked process for large messages does."""
    keep = [channel] if successor is None else [channel, successor]
    _run(lambda: _Process(settings, channel).serve(successor), keep, _NAME)


def _run(body: Callable[[], None], keep: Sequence[int], name: str) -> NoReturn:
    """Runs the body as all that this forked process does. It keeps those descriptors, and the standard ones."""
    status = 1
    try:
        start = 3
        for descriptor in sorted(keep):
            os.closerange(start, descriptor)
            start = descriptor + 1
        os.closerange(start, os.sysconf("SC_OPEN_MAX"))
        with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(name)
        body()
        status = 0
    except BaseException:  # noqa: BLE001 - the last frame of this process: it is shown, and is in the status
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


class _Process:
    """One process for large messages."""

    def __init__(self, settings: Settings, channel: int) -> None:
        self._settings = settings
        self._channel = _sockets.socket(fileno=channel)
        #: pid -> the child's end of its socket pair, until the child has ended.
        self._children: dict[int, _sockets.socket] = {}
        self._wakeup, self._wakeup_end = os.pipe()
        for descriptor in (self._wakeup, self._wakeup_end):
            os.set_blocking(descriptor, False)
        for number in _LEFT_TO_THE_WORKER:
            _signal(number, signal.SIG_IGN)
        _signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)

    def serve(self, successor: int | None) -> None:
        """Carries out what the worker requests, until that ends."""
        if successor is not None:
            self._fork_successor(successor)
        while True:
            ready = _select([self._channel, self._wakeup], [], [])[0]
            if self._wakeup in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
                self._reap()
            if self._channel in ready and not self._carry_out():
                break
        for pid in self._children:
            # It can't be another process's pid yet: only the waitpid() of this one sets it free.
            os.kill(pid, signal.SIGKILL)

    def _carry_out(self) -> bool:
        """One request; whether there may be more."""
        try:
            # The type leaves sockets of the C module out, the function does not.
            request, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)  # type: ignore[arg-type]
        except ConnectionError:
            return False
        try:
            if request == CHILD and descriptors:
                self._fork_child(descriptors[0])
            elif request == SUCCESSOR and descriptors:
                self._fork_successor(descriptors[0])
        except OSError as error:
            # The worker sees the socket pair closed. There is no log here: nothing in this process may need a hub.
            sys.stderr.write(f"the process for large messages can't fork: {error.strerror}\n")
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        return bool(request)

    def _fork_child(self, channel: int) -> None:
        kept = _sockets.socket(fileno=os.dup(channel))
        try:
            pid = _fork()
        except OSError:
            kept.close()
            raise
        if pid == 0:
            self._forget()
            _run(lambda: bulk_child.serve(self._settings, channel), [channel], _CHILD_NAME)
        self._children[pid] = kept

    def _fork_successor(self, channel: int) -> None:
        if _fork() == 0:
            self._forget()
            _serve(self._settings, channel)
        with contextlib.suppress(OSError):
            os.close(channel)

    def _forget(self) -> None:
        """In a child: what is closed below must not be closed again, when its number belongs to something else."""
        signal.set_wakeup_fd(-1)
        _signal(signal.SIGCHLD, signal.SIG_DFL)
        self._channel.detach()
        for kept in self._children.values():
            kept.detach()
        self._children.clear()

    def _reap(self) -> None:
        """Takes note of every child that ended."""
        while True:
            try:
                pid, status = _waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            kept = self._children.pop(pid, None)
            if kept is None:
                continue  # a successor
            if os.WIFSIGNALED(status):
                kept.setblocking(False)
                with contextlib.suppress(OSError):
                    send_message(kept, encode_report(Died(os.WTERMSIG(status))))
            kept.close()
