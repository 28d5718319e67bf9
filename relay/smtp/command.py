"""One row of the table of commands, and the reply to a line that has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, TypeVar

from relay.smtp import replies
from relay.smtp.error_counts import ErrorCounts
from relay.smtp.replies import Reply

#: RFC 5321 section 4.5.3.1.4 asks for 512 octets; parameters add to it, and generous clients are harmless.
COMMAND_LINE_LIMIT: Final = 4096
#: RFC 4954 section 4, and with it the most that any line may have, CRLF included.
LINE_LIMIT: Final = 12288

#: First words of protocols that a browser can be made to send here; answering them line by line would be execution.
#: And of the PROXY protocol, from a client that is not a trusted proxy.
_FOREIGN_VERBS: Final = frozenset(b"GET HEAD POST PUT DELETE OPTIONS CONNECT PATCH TRACE PROXY".split())
#: Blanks apart, which tabs are.
_CONTROL: Final = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f]")

State = TypeVar("State")


class Command(NamedTuple, Generic[State]):
    """How one command is carried out, on the state of a dialogue."""

    #: Takes the argument. None: the reply is due when the chunk has been read.
    carry_out: Callable[[State, str], Reply | None]
    #: How a refusal (5xx) counts; the reply.
    counted_as: Callable[[ErrorCounts, Reply], Reply] = ErrorCounts.command
    #: Octets that its line may have, without CRLF.
    line_limit: int = COMMAND_LINE_LIMIT
    #: The reply to a line that is too long or has control characters, where it is not the one that any command gets.
    malformed: Reply | None = None

    @classmethod
    def always(cls, reply: Reply) -> Command[State]:
        """A command that has one reply, whatever its argument."""
        return cls(lambda _state, _argument: reply)


def has_control(text: str) -> bool:
    """Whether a command holds control characters other than tabs."""
    return _CONTROL.search(text) is not None


def unknown(verb: bytes) -> Reply:
    """The reply to a line that begins with no command's name."""
    if verb.upper() in _FOREIGN_VERBS:
        return replies.NOT_SMTP
    return replies.BAD_CHARACTER if has_control(verb.decode("latin-1")) else replies.UNKNOWN_COMMAND
