"""Octets as a network brings them: the same ones cut in different ways."""

from __future__ import annotations

from collections.abc import Sequence


class EndOfStream(Exception):
    """There is nothing more to come."""


class Stream:
    """`octets` in pieces of the sizes given, over and over; all at once where none is given."""

    def __init__(self, octets: bytes, sizes: Sequence[int] = ()) -> None:
        self._octets = octets
        self._sizes = sizes or (len(octets) or 1,)
        self._turn = 0
        #: Octets that were given away.
        self.position = 0

    def receive(self) -> bytes:
        """The next piece. Raises EndOfStream."""
        return self.receive_most(len(self._octets) + 1) or _end()

    def receive_most(self, most: int) -> bytes:
        """The next piece, or so much of it; nothing at the end."""
        assert most > 0
        size = min(most, self._sizes[self._turn % len(self._sizes)])
        self._turn += 1
        begin, self.position = self.position, min(self.position + size, len(self._octets))
        return self._octets[begin : self.position]


def _end() -> bytes:
    raise EndOfStream


class Script:
    """The first octets of an input, which say what is to be done with the rest; zeros behind its end."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._position = 0

    def number(self) -> int:
        """The next octet."""
        self._position += 1
        return self._octets[self._position - 1] if self._position <= len(self._octets) else 0

    def sizes(self) -> list[int]:
        """Up to seven sizes of pieces, each from 1 to 32."""
        return [self.number() % 32 + 1 for _ in range(self.number() % 8)]

    def rest(self) -> bytes:
        """What no number was taken from."""
        return self._octets[self._position :]
