"""How much memory a message takes in the child that parses and stores it.

Before it is parsed nothing but its size is known, and what it may come to differs widely: a text with one character
beyond the Basic Multilingual Plane takes four octets a character, one in windows-1252 three octets each in UTF-8. So
the most of all kinds is set aside at first, and once the message is parsed what it really takes. Both were measured for
each kind of content: see `tests/integration/test_child_memory.py`.
"""

from __future__ import annotations

import sys
from typing import Final

from relay.mail import Message

#: Octets that a child has to itself besides the message: pages that it writes to and that were its parent's before.
CHILD_OCTETS: Final = 16_000_000
#: Up to so many octets a message is handled in one piece of memory (relay.process.heap), which costs less CPU time and
#: leaves gaps; what is larger takes memory piece by piece.
IN_ONE_PIECE: Final = 12_000_000
#: Octets that each octet of a message may take, whatever is in it, with and without gaps.
_AT_MOST_WITH_GAPS: Final = 16
_AT_MOST: Final = 12
#: What the gaps come to: pages of 2 MB that are used in part, what reading and parsing used, and a part of the rest.
_GAPS: Final = 4_000_000
_GAPS_OF_SIZE: Final = 2.0
_GAPS_OF_REST: Final = 0.25
#: Copies of what goes to Postgres: the statement, the pieces that it is put together from, and libpq's buffer, which
#: doubles whenever it is full.
_COPIES: Final = 3


def before_parsing(size: int) -> int:
    """Octets of memory for a message of so many octets."""
    return CHILD_OCTETS + (_AT_MOST_WITH_GAPS if size <= IN_ONE_PIECE else _AT_MOST) * size


def after_parsing(message: Message, size: int) -> int:
    """Octets of memory for what is left to do with a message of `size` octets.

    In one piece of memory there are gaps where those were, until the message is done.
    """
    stored = sum(len(attachment.content) for attachment in message.attachments)
    octets = stored + _COPIES * stored
    for text in (message.html, message.text):
        octets += sys.getsizeof(text) + _COPIES * _utf_8_octets(text)
    if size <= IN_ONE_PIECE:
        octets += _GAPS + int(size * _GAPS_OF_SIZE + octets * _GAPS_OF_REST)
    return CHILD_OCTETS + octets


def _utf_8_octets(text: str) -> int:
    """Their number, or at most so many."""
    if text.isascii():
        return len(text)
    in_python = sys.getsizeof(text) / len(text)
    if in_python >= 4:
        # One character beyond the Basic Multilingual Plane makes all others as large, whatever those are.
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text) * (2 if in_python < 2 else 3)
