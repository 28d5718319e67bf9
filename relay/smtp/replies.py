"""Every reply that the relay gives, in one place: code, enhanced status code (RFC 3463) and text (RFC 5321 section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: RFC 5321 section 4.5.3.1.5: a reply line, CRLF included.
MAX_LINE_OCTETS: Final = 512


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, of one line or several. `enhanced` is empty where RFC 2034 forbids it: 220 greeting, EHLO, 334, 354."""

    code: int
    enhanced: str
    lines: tuple[str, ...]
    #: The connection ends after this reply.
    closes: bool = False

    def encode(self) -> bytes:
        """The octets for the wire. A line that is too long is cut; anything but printable ASCII becomes `?`."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        last = len(self.lines) - 1
        return b"".join(
            _line(f"{self.code}{' ' if number == last else '-'}{prefix}{text}")
            for number, text in enumerate(self.lines)
        )

    @property
    def positive(self) -> bool:
        """Whether the command was carried out or may go on (2xx, 3xx)."""
        return self.code < 400


def _line(text: str) -> bytes:
    octets = text.encode("ascii", "replace")[: MAX_LINE_OCTETS - 2]
    return bytes(octet if 32 <= octet < 127 else 63 for octet in octets) + b"\r\n"


def _reply(code: int, enhanced: str, text: str, *, closes: bool = False) -> Reply:
    return Reply(code, enhanced, (text,), closes)
