"""Lines on standard output, each whole or not at all. Nothing but the standard library: the master imports this."""

from __future__ import annotations

import os
import stat


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


def _take_back(octets: int) -> None:
    """Removes what was written last, where standard output is a file and nobody has written behind it since."""
    try:
        status = os.fstat(1)
        end = os.lseek(1, 0, os.SEEK_CUR)
        if stat.S_ISREG(status.st_mode) and status.st_size == end:
            os.ftruncate(1, end - octets)
            # Without O_APPEND the next line would come behind a hole.
            os.lseek(1, end - octets, os.SEEK_SET)
    except OSError:
        return
