"""Message data: whatever a mail is made of, and however it is cut, the host reads that mail and no second one."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import example, given
from hypothesis import strategies as st

from relay.delivery.content import Held
from relay.delivery.smtp_text import END, stuffed
from relay.smtp.framing import DataEnd, Framing

OCTETS = st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"x", b"..", b"\r\n.\r\n"]), max_size=20).map(b"".join)


class Pieces:
    """Content that comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.size = sum(map(len, pieces))

    def pieces(self) -> Iterator[bytes]:
        return iter(self._pieces)


class Kept:
    octets = b""

    def write(self, octets: bytes) -> None:
        self.octets += octets


def read(sent: bytes) -> tuple[DataEnd, bytes, bool]:
    """What this project's own server makes of it, and whether anything is left behind the end."""
    rest = iter([sent])
    framing, kept = Framing(lambda: next(rest)), Kept()
    end = framing.data(kept, 1_000_000)
    return end, kept.octets, framing.empty


@given(st.lists(OCTETS, max_size=6))
@example([b"\r", b"\n.", b"\r\n"])
@example([b"x\n.\nMAIL FROM:<a@b.example>\n"])
@example([b"."])
def test_the_host_reads_the_mail_and_nothing_else(pieces: list[bytes]) -> None:
    octets = b"".join(pieces)
    lines = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    wanted = lines if not lines or lines.endswith(b"\r\n") else lines + b"\r\n"
    assert read(b"".join(stuffed(Pieces(pieces))) + END) == (DataEnd.COMPLETE, wanted, True)


@given(st.lists(OCTETS, max_size=6))
def test_a_server_that_takes_other_line_ends_for_one_sees_no_second_mail(pieces: list[bytes]) -> None:
    sent = b"".join(stuffed(Pieces(pieces)))
    lines = sent.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    assert b"." not in lines
    assert sent.count(b"\r\n") == sent.count(b"\r") == sent.count(b"\n")


@given(st.lists(OCTETS, max_size=6))
def test_no_piece_is_empty(pieces: list[bytes]) -> None:
    assert all(stuffed(Pieces(pieces)))


def test_what_needs_nothing_is_not_copied() -> None:
    octets = b"a line\r\n" * 1000
    (piece,) = stuffed(Held(octets))
    assert piece is octets
