"""Octets of a mail on its way out, in memory or in a file, read piece by piece."""

from __future__ import annotations

import binascii
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import IO, Final, Protocol

from relay.core.frozen import frozen

#: Octets read from a file at a time: a multiple of 57, which make one line of Base64.
PIECE: Final = 57 * 4096
#: What stands for a token in a text: an octet that no UTF-8 has.
SEAM: Final = b"\xff"


class NoRoom(Exception):
    """The spool can't take a mail: no temporary file, or the disk is full. A temporary failure of this side.

    `code`: the name of the errno.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(os.strerror(error.errno or 0))
        self.code = errno.errorcode.get(error.errno or 0, type(error).__name__)


class Content(Protocol):
    """Octets that can be gone through more than once."""

    @property
    def size(self) -> int:
        """How many there are."""

    def pieces(self) -> Iterator[bytes]:
        """All of them in order, from the beginning, in pieces of any length but 0. Raises NoRoom."""


@frozen
class Held:
    """Content in memory."""

    octets: bytes

    @property
    def size(self) -> int:
        """See Content."""
        return len(self.octets)

    def pieces(self) -> Iterator[bytes]:
        """See Content."""
        if self.octets:
            yield self.octets


@frozen
class Woven:
    """Text in memory with tokens in it, whose octets need no transfer encoding: a line may be cut within them.

    `octets`: UTF-8, with SEAM for each token, behind which comes neither `.` nor `F`. `tokens`: characters of
    base64url, and one `.` within them at most.
    """

    octets: bytes
    tokens: Sequence[bytes]

    @property
    def size(self) -> int:
        """See Content."""
        return len(self.octets) - len(self.tokens) + sum(map(len, self.tokens))

    def pieces(self) -> Iterator[bytes]:
        """See Content."""
        yield b"".join(chain.from_iterable(zip(self.octets.split(SEAM), (*self.tokens, b""), strict=True)))


def woven(pieces: Iterable[tuple[Sequence[bytes], bytes, Sequence[bytes]]]) -> Content:
    """Text in pieces of UTF-8, what comes behind each of some pieces, and then the token; none: there is neither."""
    octets: list[bytes] = []
    tokens: list[bytes] = []
    for texts, before, behind in pieces:
        octets.append((before + SEAM).join([*texts, b""]) if behind else b"".join(texts))
        tokens += behind
    return Woven(b"".join(octets), tokens) if tokens else Held(b"".join(octets))


@frozen
class Encoded:
    """Content in memory as its Base64, in which it leaves: octets are made of it where they are asked for.

    `characters`: as RFC 4648 section 4 has them, with padding, and nothing in them that stands for no octet.
    """

    characters: bytes

    @property
    def size(self) -> int:
        """See Content."""
        return len(self.characters) // 4 * 3 - self.characters.count(b"=", -2)

    def pieces(self) -> Iterator[bytes]:
        """See Content."""
        if self.characters:
            yield binascii.a2b_base64(self.characters)


@frozen
class Slice:
    """Content that lies in a spool, from `start` on."""

    file: IO[bytes]
    start: int
    size: int

    def pieces(self) -> Iterator[bytes]:
        """See Content. Each but the last has PIECE octets."""
        position, end = self.start, self.start + self.size
        while position < end:
            octets = self.read(position, min(PIECE, end - position))
            yield octets
            position += len(octets)

    def read(self, position: int, size: int) -> bytes:
        """So many octets of the file from there on. Raises NoRoom."""
        try:
            octets = os.pread(self.file.fileno(), size, position)
            if len(octets) < size:
                raise OSError(errno.EIO, "a spool ended early")
        except OSError as error:
            raise NoRoom(error) from error
        return octets


def octets_of(content: Content) -> bytes:
    """All of it, in memory. Raises NoRoom."""
    if isinstance(content, Held):
        return content.octets
    if isinstance(content, Slice):  # joined pieces would take twice the memory
        return content.read(content.start, content.size)
    return b"".join(content.pieces())


class Spool:
    """A file without a name for the contents of one mail: whatever ends this process, nothing is left behind."""

    def __init__(self, directory: str | None) -> None:
        """`directory`: None is the system's temporary folder. Raises NoRoom."""
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - see close
        except OSError as error:
            raise NoRoom(error) from error
        #: Octets so far.
        self.size = 0

    def write(self, octets: bytes) -> None:
        """Adds octets. Raises NoRoom."""
        rest = memoryview(octets)
        try:
            while rest:
                written = self._file.write(rest)
                self.size += written
                rest = rest[written:]
        except OSError as error:
            raise NoRoom(error) from error

    def since(self, start: int) -> Slice:
        """What has been written from the octet number `start` on."""
        return Slice(self._file, start=start, size=self.size - start)

    def cut(self, size: int) -> None:
        """Forgets what is beyond so many octets. Raises NoRoom."""
        try:
            self._file.seek(size)
            self._file.truncate()
        except OSError as error:
            raise NoRoom(error) from error
        self.size = size

    def close(self) -> None:
        """Lets go of the file. What was read of it before stays."""
        self._file.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
