"""Message data as it arrives: in memory while it is small, in an unlinked temporary file from a threshold on."""

from __future__ import annotations

import os
import tempfile
from io import BytesIO
from typing import IO, ClassVar


class NoRoom(Exception):
    """The spool can't take the message: no temporary file, or the disk is full. Passes."""


class Body:
    """The raw octets of one message, complete or still arriving.

    Up to `threshold` octets stay in memory. A larger message goes to a file without a name in `directory` (the system's
    temporary folder where that is None): whatever ends this process, nothing is left behind. Who makes one closes it.
    """

    __slots__ = ("_directory", "_file", "_first", "_in_memory", "_memory", "_threshold", "size")

    #: Octets that all messages of a process together may keep in memory; past it small ones go to files as well.
    most_in_memory: ClassVar[int] = 64_000_000
    #: Octets that they keep there now.
    in_memory: ClassVar[int] = 0

    def __init__(self, threshold: int, directory: str | None = None) -> None:
        self._threshold = threshold
        self._directory = directory
        #: What came first; most messages come whole. From the second piece on they are put together in one buffer, not
        #: in a list: a client that sends an octet a packet must not cost forty times as much.
        self._first = b""
        self._memory: BytesIO | None = None
        #: How many octets that are.
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        #: Octets so far.
        self.size = 0

    @classmethod
    def from_file(cls, fd: int) -> Body:
        """Takes over the descriptor of a file that another process spooled."""
        body = cls(0)
        body._file = os.fdopen(fd, "rb", buffering=0)
        body.size = os.fstat(fd).st_size
        return body

    def write(self, octets: bytes) -> None:
        """Takes the next octets. Raises NoRoom; what is kept then is of no use."""
        count = len(octets)
        self.size += count
        if self._file is None and self.size <= self._threshold and Body.in_memory + count <= self.most_in_memory:
            Body.in_memory += count
            if not self._in_memory:
                self._first = octets
            else:
                if self._memory is None:
                    self._memory = BytesIO()
                    self._memory.write(self._first)
                    self._first = b""
                self._memory.write(octets)
            self._in_memory += count
            return
        try:
            if self._file is None:
                # Closed by `close`, or by the end of the process.
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
                _write_all(self._file, self._held())
                self._forget()
            _write_all(self._file, octets)
        except OSError as error:
            raise NoRoom from error

    @property
    def spooled(self) -> bool:
        """Whether the octets are in a file."""
        return self._file is not None

    def fileno(self) -> int:
        """The descriptor of the file. Raises ValueError when the octets are in memory."""
        if self._file is None:
            raise ValueError("not spooled")
        return self._file.fileno()

    def read(self) -> bytes:
        """All octets, in memory."""
        if self._file is not None:
            self._file.seek(0)
            return self._file.read()
        return self._held()

    def close(self) -> None:
        """Lets go of the octets; `size` stays."""
        self._forget()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _held(self) -> bytes:
        return self._first if self._memory is None else self._memory.getvalue()

    def _forget(self) -> None:
        Body.in_memory -= self._in_memory
        self._in_memory = 0
        self._first = b""
        self._memory = None


def _write_all(file: IO[bytes], octets: bytes) -> None:
    view = memoryview(octets)
    while view:
        view = view[file.write(view) :]
