"""Message data as it arrives: in memory while it is small, in an unlinked temporary file from a threshold on."""

from __future__ import annotations

import os
import tempfile
from io import BytesIO
from typing import IO, ClassVar

from relay.smtp.spool_room import NoRoom, Share, SpoolRoom

__all__ = ["Body", "NoRoom"]


class Body:
    """The raw octets of one message, complete or still arriving.

    Up to `threshold` octets stay in memory. A larger message goes to a file without a name in `directory` (the system's
    temporary folder where that is None): whatever ends this process, nothing is left behind. The caller that makes one
    closes it.
    """

    __slots__ = ("_announced", "_directory", "_file", "_first", "_in_memory", "_memory", "_share", "_threshold", "size")

    #: Octets that all messages of a process together may keep in memory; past it small ones go to files as well.
    most_in_memory: ClassVar[int] = 64_000_000
    #: Octets that they keep there now.
    in_memory: ClassVar[int] = 0
    #: The room that the files of all messages of a process take.
    room: ClassVar[SpoolRoom] = SpoolRoom()

    def __init__(self, threshold: int, directory: str | None = None, announced: int = 0) -> None:
        """`announced`: how many octets will come, where that is known."""
        self._threshold = threshold
        self._directory = directory
        self._announced = announced
        #: What came first; most messages come whole. From the second piece on they are put together in one buffer, not
        #: in a list: a client that sends an octet a packet must not cost forty times as much.
        self._first = b""
        self._memory: BytesIO | None = None
        #: How many octets that are.
        self._in_memory = 0
        self._file: IO[bytes] | None = None
        #: The room that is taken for the file.
        self._share: Share | None = None
        #: Octets so far.
        self.size = 0

    @classmethod
    def from_file(cls, fd: int) -> Body:
        """Takes over the descriptor of a file that another process spooled."""
        body = cls(0)
        body._file = os.fdopen(fd, "rb", buffering=0)
        body.size = os.fstat(fd).st_size
        return body

    def announce(self, size: int) -> None:
        """So many octets will come in all, or more."""
        self._announced = max(self._announced, size)

    def write(self, octets: bytes) -> None:
        """Takes the next octets. Raises NoRoom; nothing is kept then. May wait for room."""
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
            self._write_to_file(octets)
        except NoRoom:
            # The rest of it is read all the same, while others could use the room.
            self.close()
            raise

    @property
    def spooled(self) -> bool:
        """Whether the octets are in a file."""
        return self._file is not None

    def spool(self) -> None:
        """Puts what is in memory into a file, as if there had been more. Raises NoRoom."""
        if self._file is None:
            self._write_to_file(b"")

    def fileno(self) -> int:
        """The descriptor of the file, which is whole. Raises ValueError when the octets are in memory, and NoRoom."""
        if self._file is None:
            raise ValueError("not spooled")
        if self._share is not None:
            self.room.whole(self._share, self.size)
        return self._file.fileno()

    def read(self) -> bytes:
        """All octets, in memory."""
        if self._file is not None:
            self._file.seek(0)
            return self._file.read(self.size)
        return self._held()

    def close(self) -> None:
        """Lets go of the octets; `size` stays."""
        self._forget()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._share is not None:
            self.room.give_back(self._share)
            self._share = None

    def _write_to_file(self, octets: bytes) -> None:
        try:
            if self._file is None:
                # Closed by `close`, or by the end of the process.
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115
            if self._share is None:
                self._share = Share(self._file.fileno())
            self.room.take(self._share, self.size, self._announced)
            if self._in_memory:
                _write_all(self._file, self._held())
                self._forget()
            _write_all(self._file, octets)
        except OSError as error:
            raise self.room.refusal(error) from error

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
