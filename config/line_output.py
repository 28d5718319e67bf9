"""Lines on standard output, each whole or not at all. Nothing but the standard library: the master imports this."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import sys
import termios


def append() -> None:
    """Has each line go to the end of standard output where that is a file. Does not raise.

    Processes share the position in it otherwise: one that takes a part of a line back moves it in two steps, and what
    another writes between these lies behind a hole, or where the next line goes.
    """
    try:
        if stat.S_ISREG(os.fstat(1).st_mode):
            fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)
    except OSError:
        return


def write_line(line: bytes) -> bool:
    """Writes one line, which ends in LF, to standard output; whether it is there as a whole.

    A disk that fills up takes a part of a line; the rest follows, or the part is taken back, so that the next line
    begins at the beginning of a line. Does not raise.
    """
    try:
        written = os.write(1, line)
    except OSError:
        return False
    try:
        while written < len(line):
            written += os.write(1, line[written:])
    except OSError:
        _take_back(written)
        return False
    return True


def has_room(octets: int) -> bool:
    """Whether standard output, which is ready for writing, takes so many octets without making the writer wait.

    A pipe counts as ready as soon as it takes PIPE_BUF octets, and a longer line would wait for a reader that may have
    stopped reading. Where nothing can be found out, there is room.
    """
    if octets <= select.PIPE_BUF or sys.platform != "linux":
        return True
    try:
        if not stat.S_ISFIFO(os.fstat(1).st_mode):
            return True
        unread = int.from_bytes(fcntl.ioctl(1, termios.FIONREAD, bytes(4)), sys.byteorder)
        # A page may be left half empty at each end of what is unread.
        return unread + octets + 2 * select.PIPE_BUF <= fcntl.fcntl(1, fcntl.F_GETPIPE_SZ)
    except OSError:
        return True


def _take_back(octets: int) -> None:
    """Removes what was written last, where standard output is a file and nothing has been written behind it since.

    The position stays: it belongs to the process that wrote last, and no process writes there (see `append`).
    """
    try:
        status = os.fstat(1)
        end = os.lseek(1, 0, os.SEEK_CUR)
        if stat.S_ISREG(status.st_mode) and status.st_size == end:
            os.ftruncate(1, end - octets)
    except OSError:
        return
