"""The master process: it starts the workers, replaces those that die, and ends them in good order.

It imports nothing but the standard library, and little of that, because it lives as long as the service and its memory
counts beside the workers'. Everything heavy happens in children: the first one validates the settings and binds the
sockets, hands both over, and ends; the others are the workers, all accepting from the same sockets.

Signals: SIGTERM and SIGINT drain (exit 0; whoever isn't done by the deadline is killed, which loses nothing that was
answered), a second one ends everything at once (exit 1); SIGHUP makes the workers load the certificate again.
Exit 2: it can't start as it is configured. Exit 1: the workers fail at start, or a second signal.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False  # as in typing, which would take a tenth of this process's memory
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final, NoReturn

    #: (index of the worker from 0, settings as JSON, listening descriptors and whether each is for implicit TLS,
    #: lifeline: see relay.process.signals, board: see relay.server.connection_table) -> exit status. Runs in the
    #: worker.
    Serve = Callable[[int, bytes, Sequence[tuple[int, bool]], int, int], int]

#: Exit status: not with these settings.
EXIT_CONFIGURATION: Final = 2

#: A worker that lived this long had started; seconds.
STARTED_AFTER: Final = 3.0
#: The pause before a dead worker is replaced doubles with each quick death, between these bounds; seconds.
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
#: When no worker has ever started, so many quick deaths are the end: the platform sees it and tells its user.
HOPELESS_AFTER: Final = 4
#: Workers end their drain by themselves; they are killed so much later than that; seconds.
KILL_GRACE: Final = 2.0
#: A SIGINT and a SIGTERM so close together are one wish: Ctrl-C reaches all, and a parent passes it on; seconds.
SAME_WISH: Final = 1.0

_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_ENDING: Final = frozenset((int(signal.SIGTERM), int(signal.SIGINT)))


def run(prepare: Callable[[socket.socket], None], serve: Serve) -> int:
    """Runs until told to end. `prepare` runs in a child that may exit with a status of its own: see `hand_over`.

    Returns the exit status of the service.
    """
    wakeup = _listen_for_signals()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _end_child(lambda: _prepare(prepare, theirs))
    theirs.close()
    with ours:
        while ours.fileno() not in select.select([ours.fileno(), wakeup], [], [])[0]:
            if _ENDING.intersection(_read_signals(wakeup)):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return 0
        received = _receive(ours)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if exit_code != 0 or received is None:
        # Ctrl-C reaches the child by itself, which is no failure.
        return 0 if -exit_code in _ENDING else max(exit_code, 1)
    return _Master(received, serve, wakeup).run()


def _listen_for_signals() -> int:
    """A descriptor from which the numbers of arriving signals can be read, one octet each."""
    wakeup, wakeup_end = os.pipe()
    os.set_blocking(wakeup, False)
    os.set_blocking(wakeup_end, False)
    signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
    for number in _HANDLED:
        # The handler has nothing to do: the interpreter writes the number, and select() returns.
        signal.signal(number, lambda *_: None)
    return wakeup


def _read_signals(wakeup: int) -> bytes:
    try:
        return os.read(wakeup, 4096)
    except BlockingIOError:
        return b""


def _forget_signals() -> None:
    """In a child: signals are not the master's any more. Until a worker attends to them it has nothing to drain."""
    os.close(signal.set_wakeup_fd(-1))
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)


def _prepare(prepare: Callable[[socket.socket], None], channel: socket.socket) -> None:
    _forget_signals()
    prepare(channel)


class _Received:
    """What the preparing child handed over."""

    def __init__(self, header: bytes, settings: bytes, descriptors: Sequence[int]) -> None:
        workers, drain_seconds, style, implicit_tls = header.decode("ascii").split()
        self.workers = int(workers)
        self.drain_seconds = float(drain_seconds)
        self.json_lines = style == "json"
        self.settings = settings
        self.board, *listening = descriptors
        self.listeners = [(fd, flag == "1") for fd, flag in zip(listening, implicit_tls, strict=True)]


def hand_over(
    channel: socket.socket,
    *,
    settings: bytes,
    workers: int,
    drain_seconds: float,
    json_lines: bool,
    listeners: Sequence[tuple[int, bool]],
    board: int,
) -> None:
    """The preparing child's last words: everything that the master and the workers need."""
    implicit_tls = "".join("1" if implicit else "0" for _, implicit in listeners)
    header = f"{workers} {drain_seconds!r} {'json' if json_lines else 'text'} {implicit_tls}\n".encode("ascii")
    socket.send_fds(channel, [b"+"], [board, *(fd for fd, _ in listeners)])
    channel.sendall(header + settings)


def _receive(channel: socket.socket) -> _Received | None:
    """None when the child ended without a word; what was wrong it has said itself."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 64)
    document = b"".join(iter(lambda: channel.recv(65536), b""))
    header, found, settings = document.partition(b"\n")
    if not found:
        return None
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return _Received(header, settings, descriptors)


def _end_child(body: Callable[[], int | None]) -> NoReturn:
    """Runs the body as all that this forked process does: nothing of the master's stack may run in it afterwards."""
    status = 1
    try:
        status = body() or 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was, it is shown, and the status tells
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


class _Master:
    def __init__(self, received: _Received, serve: Serve, wakeup: int) -> None:
        self._received = received
        self._serve = serve
        self._wakeup = wakeup
        #: pid -> (index, when it was forked)
        self._workers: dict[int, tuple[int, float]] = {}
        #: index -> when it is due to be forked
        self._due = dict.fromkeys(range(received.workers), 0.0)
        #: index -> quick deaths in a row
        self._quick_deaths = dict.fromkeys(range(received.workers), 0)
        self._any_started = False
        self._first_wish: tuple[int, float] | None = None
        self._lifeline, self._lifeline_end = os.pipe()

    def run(self) -> int:
        while True:
            status = self._reap()
            if status is None:
                status = self._fork_due()
            if status is not None:
                return status
            select.select([self._wakeup], [], [], self._seconds_to_next_event())
            for number in _read_signals(self._wakeup):
                if number == signal.SIGHUP:
                    self._signal_all(signal.SIGHUP)
                elif number in _ENDING and self._wish_to_end(number):
                    self._say("warning", "ended at once by a second signal", workers=len(self._workers))
                    return self._kill_all(1)

    # What the outside says.

    def _wish_to_end(self, number: int) -> bool:
        """Begins the drain. Whether everything is to end at once: this is the second wish."""
        now = time.monotonic()
        if self._first_wish is None:
            self._first_wish = number, now
            self._say("info", "draining", workers=len(self._workers), signal=signal.Signals(number).name)
            for fd, _ in self._received.listeners:
                # Ours is the last one open once the workers closed theirs; it would take clients whom nobody serves.
                os.close(fd)
            self._due.clear()
            self._signal_all(signal.SIGTERM)
            return False
        first_number, first_time = self._first_wish
        return first_number == number or now - first_time > SAME_WISH

    def _deadline(self) -> float:
        assert self._first_wish is not None  # noqa: S101 - for the type checker
        return self._first_wish[1] + self._received.drain_seconds + KILL_GRACE

    def _seconds_to_next_event(self) -> float | None:
        if self._first_wish is not None:
            moment = self._deadline()
        elif self._due:
            moment = min(self._due.values())
        else:
            return None
        return max(0.0, moment - time.monotonic())

    # The workers.

    def _fork_due(self) -> int | None:
        """Forks whoever is due. An exit status when the drain is over."""
        now = time.monotonic()
        if self._first_wish is not None:
            if not self._workers:
                self._say("info", "drained")
                return 0
            if now >= self._deadline():
                self._say("warning", "drain took too long, workers killed", workers=len(self._workers))
                return self._kill_all(0)
            return None
        for index in [index for index, moment in self._due.items() if moment <= now]:
            del self._due[index]
            self._fork(index)
        return None

    def _fork(self, index: int) -> None:
        # Until the child has handlers of its own, a signal to it would arrive at the master's wakeup descriptor.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        pid = os.fork()
        if pid == 0:
            _end_child(lambda: self._work(index))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        self._workers[pid] = index, time.monotonic()

    def _work(self, index: int) -> int:
        _forget_signals()
        for number in (signal.SIGINT, signal.SIGHUP):
            # The master passes SIGINT on as SIGTERM, and a certificate not yet loaded needs no second loading.
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        os.close(self._wakeup)
        os.close(self._lifeline_end)
        return self._serve(
            index, self._received.settings, self._received.listeners, self._lifeline, self._received.board
        )

    def _reap(self) -> int | None:
        """Takes note of every worker that ended. An exit status when there is no point in going on."""
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid not in self._workers:
                continue  # As PID 1 of a container the master inherits orphans.
            index, forked = self._workers.pop(pid)
            if self._first_wish is None:
                give_up = self._replace(index, pid, os.waitstatus_to_exitcode(status), time.monotonic() - forked)
                if give_up is not None:
                    return give_up
        return None

    def _replace(self, index: int, pid: int, exit_code: int, lived: float) -> int | None:
        if lived >= STARTED_AFTER:
            self._any_started = True
            self._quick_deaths[index] = 0
        else:
            self._quick_deaths[index] += 1
        deaths = self._quick_deaths[index]
        hopeless = exit_code == EXIT_CONFIGURATION or deaths >= HOPELESS_AFTER
        if hopeless and not self._any_started and not self._elder(STARTED_AFTER):
            self._say("critical", "workers fail at start, giving up", exit_code=exit_code)
            return self._kill_all(EXIT_CONFIGURATION if exit_code == EXIT_CONFIGURATION else 1)
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(deaths, 16))
        self._due[index] = time.monotonic() + pause
        self._say(
            "error", "worker died, will be replaced", index=index, pid=pid, exit_code=exit_code, pause_seconds=pause
        )
        return None

    def _elder(self, age: float) -> bool:
        now = time.monotonic()
        return any(now - forked >= age for _, forked in self._workers.values())

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._workers:
            # It can't be another process's pid yet: only the master's waitpid() sets it free.
            os.kill(pid, number)

    def _kill_all(self, status: int) -> int:
        self._signal_all(signal.SIGKILL)
        for pid in self._workers:
            os.waitpid(pid, 0)
        return status

    def _say(self, level: str, event: str, **fields: int | float | str) -> None:
        """One line of the service's log, in the form that config.logging gives the workers' lines.

        Values are numbers and words of our own, so that nothing needs escaping.
        """
        now = time.time()
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
        if self._received.json_lines:
            members = "".join(
                f',"{name}":{value}' if isinstance(value, int | float) else f',"{name}":"{value}"'
                for name, value in fields.items()
            )
            line = f'{{"timestamp":"{moment}","level":"{level}","event":"{event}","process":"master"{members}}}\n'
        else:
            line = f"{moment} [{level:<8}] {event:<36} " + " ".join(f"{name}={value}" for name, value in fields.items())
            line = line.rstrip() + "\n"
        try:
            os.write(1, line.encode("ascii"))
        except OSError:
            # Whoever read our log is gone. That is no reason to give up the mail.
            return
