"""The process that workers are forked from: it has loaded everything, and otherwise does nothing.

So a worker that is replaced runs the code of the service's start, whatever has become of the files, starts within
moments, and shares memory with the others. It is forked as an orphan, which the master takes in: the template may end,
and the master has its workers all the same.

    master → template   fork INDEX LENGTH, LF, then so many octets: the certificate pair
    template → master   loaded DIGEST · forked INDEX PID · failed INDEX ERRNO, each with LF

Both run the same code: the template is forked from the master, not started.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from relay.process import forking

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

#: What the process is called, where operators look for it.
NAME: Final = "relay-template"
#: How long loading may take, and a fork; seconds.
LOAD_SECONDS: Final = 120.0
FORK_SECONDS: Final = 20.0

_COMM: Final = "/proc/self/comm"

# As it is before gevent patches it.
_close: Final = os.close


def run(channel: int, load: Callable[[], None], work: Callable[[int, bytes], int]) -> int:
    """What the process does until the master closes its end of the channel; the exit status.

    `work(index, certificate)` is what a worker does.
    """
    workers_name = _rename(NAME)
    # Signals stay blocked, as `forking.fork` leaves them: one that is sent to every process is meant for the service.
    # This process ends with the master's end of the channel.
    load()
    _tell(channel, f"loaded {_digest()}")
    octets = b""
    while True:
        header, found, rest = octets.partition(b"\n")
        if found:
            _, index, length = header.split()
            if len(rest) >= int(length):
                certificate, octets = rest[: int(length)], rest[int(length) :]
                _fork(channel, int(index), certificate, work=work, workers_name=workers_name)
                continue
        received = os.read(channel, 65536)
        if not received:
            return 0
        octets += received


def _fork(
    channel: int, index: int, certificate: bytes, *, work: Callable[[int, bytes], int], workers_name: str
) -> None:
    def body() -> int:
        _close(channel)
        _rename(workers_name)
        return work(index, certificate)

    try:
        pid = forking.fork_orphan(body)
    except OSError as error:
        _tell(channel, f"failed {index} {error.errno or 0}")
    else:
        _tell(channel, f"forked {index} {pid}")


def _tell(channel: int, line: str) -> None:
    try:
        os.write(channel, line.encode("ascii") + b"\n")
    except BrokenPipeError:
        return  # the master is gone, which the next read says as well


def _rename(name: str) -> str:
    """Changes what `ps -o comm` calls this process; what it was called before. On Linux; nothing depends on it."""
    try:
        with open(_COMM, encoding="utf-8", errors="surrogateescape") as comm:
            before = comm.read().rstrip("\n")
        with open(_COMM, "w", encoding="utf-8", errors="surrogateescape") as comm:
            comm.write(name)
        return before
    except OSError:
        return ""


def _digest() -> str:
    """A digest of the code's files: of each its name, size and time of change."""
    import hashlib  # noqa: PLC0415 - not in the master

    digest = hashlib.sha256()
    for path in sorted({getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}):
        try:
            status = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


class Template:
    """The master's view of it."""

    def __init__(self, load: Callable[[], None], work: Callable[[int, bytes], int], close: Callable[[], None]) -> None:
        """Forks it. `close` runs in the child: it closes what is the master's alone. Raises OSError."""
        self._ours, theirs = socket.socketpair()

        def body() -> int:
            self._ours.close()
            close()
            return run(theirs.fileno(), load, work)

        try:
            self.pid = forking.fork(body)
        except OSError:
            self._ours.close()
            raise
        finally:
            theirs.close()
        self.forked = time.monotonic()
        self._ours.setblocking(False)
        self._octets = b""
        self._unsent = b""
        #: Set by its first word; None while it loads.
        self.digest: str | None = None
        #: Indices of workers that it was asked for.
        self.asked: set[int] = set()
        #: Looks of the master in a row without a word from it, while there is something to wait for.
        self.silent_looks = 0

    def fileno(self) -> int:
        """For select(): its words."""
        return self._ours.fileno()

    @property
    def sending(self) -> bool:
        """Whether there is something left to send."""
        return bool(self._unsent)

    def ask(self, index: int, certificate: bytes) -> None:
        """Asks for a worker."""
        self.asked.add(index)
        self._unsent += b"fork %d %d\n" % (index, len(certificate)) + certificate
        self.send()

    def send(self) -> None:
        """Sends as much as goes without waiting. That it has ended is known from elsewhere."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._ours.send(self._unsent) :]
        except OSError:
            return

    def words(self) -> Iterator[list[str]]:
        """What it says, word by word of each line, as far as it has arrived."""
        try:
            while received := self._ours.recv(65536):
                self._octets += received
        except OSError:
            pass  # nothing more for now
        while b"\n" in self._octets:
            line, _, self._octets = self._octets.partition(b"\n")
            self.silent_looks = 0
            yield line.decode("ascii").split()

    def look(self, seconds: float) -> bool:
        """To be called every so many seconds; whether it has hung."""
        if self.digest is not None and not self.asked:
            self.silent_looks = 0
            return False
        self.silent_looks += 1
        return self.silent_looks * seconds >= (LOAD_SECONDS if self.digest is None else FORK_SECONDS)

    def dismiss(self) -> None:
        """Lets it end: it is asked for nothing more. One that still loads is killed, since it has forked no worker."""
        if self.digest is None:
            os.kill(self.pid, signal.SIGKILL)
        else:
            try:
                self._ours.shutdown(socket.SHUT_WR)
            except OSError:
                return  # it has ended

    def close(self) -> None:
        """After its end."""
        self._ours.close()
