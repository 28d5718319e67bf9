"""How many errors a client may make on one connection, and which ones are not held against it."""

from __future__ import annotations

from typing import Final

from relay.smtp import replies
from relay.smtp.options import Options
from relay.smtp.replies import Reply

#: Codes of replies to what no working client says, or says here.
_NONSENSE: Final = frozenset((500, 501, 502, 503, 504, 530, 538, 555))
#: Bad sequence of commands (RFC 5321 section 4.2.2).
_BAD_SEQUENCE: Final = 503
#: Refused recipients that any client may have, however few recipients a transaction may have.
_LEAST_REFUSED: Final = 100


class ErrorCounts:
    """The counts of one connection.

    `command`, `sequel` and `recipient` take the reply (5xx) to a command of that kind, count it, and return what the
    client is to get: the same reply, or the end of the connection.
    """

    __slots__ = ("_before_auth", "_errors", "_excused", "_options", "_refused_recipients")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._before_auth = 0
        self._errors = 0
        #: Commands behind a refused MAIL that are no further errors: the client had sent them along with it.
        self._excused = 0
        #: Recipients refused since the last message was accepted.
        self._refused_recipients = 0

    def before_auth(self) -> Reply | None:
        """Counts a line of a client that has not authenticated; the end of the connection when it is one too many."""
        self._before_auth += 1
        return replies.TOO_MANY_BEFORE_AUTH if self._before_auth > self._options.max_before_auth else None

    def command(self, reply: Reply) -> Reply:
        """Any command."""
        if reply.code not in _NONSENSE:
            return reply
        self._errors += 1
        return replies.TOO_MANY_ERRORS if self._errors > self._options.max_errors else reply

    def sequel(self, reply: Reply) -> Reply:
        """A command that is sent along with MAIL (RFC 2920)."""
        if reply.code == _BAD_SEQUENCE and self._excused:
            self._excused -= 1
            return reply
        return self.command(reply)

    def recipient(self, reply: Reply) -> Reply:
        """RCPT. An application may well have a list of bad recipients, as long as there are good ones."""
        if reply.code == _BAD_SEQUENCE:
            return self.sequel(reply)
        self._refused_recipients += 1
        most = max(self._options.max_recipients, _LEAST_REFUSED)
        return replies.TOO_MANY_REFUSED if self._refused_recipients > most else reply

    def mail_refused(self) -> None:
        """MAIL began no transaction: so many commands as belong to one are excused."""
        self._excused = self._options.max_recipients + 1

    def sequence_restarted(self) -> None:
        """What comes next does not follow a refused MAIL any more."""
        self._excused = 0

    def message_accepted(self) -> None:
        """There were good recipients."""
        self._refused_recipients = 0
