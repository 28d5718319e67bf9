"""What a smart host's replies, or its silence, make of one mail: outcomes for the row, without secrets.

`relay.delivery.smtp_verdict` says what a single reply means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from relay.delivery.outcome import Failed, RefusedRecipient, Verdict
from relay.delivery.provider import Handover
from relay.delivery.smart_host import NotOpened, SmartHost
from relay.delivery.smtp_client import Reply
from relay.delivery.smtp_verdict import Phase, of_reply

#: Seconds of the first rest where a connection does not come about, by kind.
_RESTS: Final = {"credentials": 60.0, "tls": 60.0}
_AWAY: Final = 5.0
#: Names that hosts give to a mail: Postfix and this relay; Exim, Sendmail; Exchange, Google.
_MESSAGE_IDS: Final = (
    re.compile(r"queued as <?([A-Za-z0-9._@-]{1,120})"),
    re.compile(r"\bid=([A-Za-z0-9._@-]{1,120})"),
    re.compile(r"<([A-Za-z0-9._@-]{1,120})>"),
)
_MAX_TEXT: Final = 500
#: Verdicts on one recipient, from the one that lets a mail be tried again to the one that ends it.
_HOPE: Final = (Verdict.UNCLEAR, Verdict.NOT_THIS_MAIL, Verdict.PASSING, Verdict.EITHER, Verdict.PERMANENT)


class Outcomes:
    """Of one mail, by the replies to it."""

    def __init__(self, host: SmartHost, handover: Handover) -> None:
        self._host = host
        self._handover = handover

    def all_refused(self, replies: Sequence[Reply]) -> Failed:
        """The mail was refused for each of its recipients: the reply that leaves most hope decides."""
        return most_hopeful([self.failed(reply, "RCPT") for reply in replies])

    def failed(self, reply: Reply, phase: Phase) -> Failed:
        """A reply that is no yes."""
        return of_reply(reply, phase, f"{phase}: {self._shown(reply)}")

    def named(self, address: str, reply: Reply, *, passing: bool = False) -> RefusedRecipient:
        """A recipient that got this reply. `passing`: it is to be tried again, whatever the reply says."""
        failed = self.failed(reply, "RCPT")
        passing = passing or failed.verdict is not Verdict.PERMANENT
        return RefusedRecipient(address=address, passing=passing, code=failed.code, message=self._shown(reply))

    def message_id(self, reply: Reply) -> str:
        """The name by which the host knows the mail; else its Message-ID."""
        for pattern in _MESSAGE_IDS:
            found = pattern.search(reply.text)
            if found and found[1] not in self._handover.recipients:
                return found[1]
        return f"{self._handover.email_id}@{self._handover.sender.rpartition('@')[2]}"

    def _shown(self, reply: Reply) -> str:
        """A reply for the row: with its text, unless that repeats what is secret."""
        text = reply.text[:_MAX_TEXT]
        return f"{reply.codes} {text}".rstrip() if self._host.may_show(reply.text) else reply.codes


def most_hopeful(failures: Sequence[Failed]) -> Failed:
    """The one that leaves most hope."""
    return min(failures, key=lambda failed: _HOPE.index(failed.verdict))


def of_broken(code: str) -> Failed:
    """The connection ended, and the host does not have the mail."""
    return Failed(Verdict.EITHER, code, f"the connection to the smart host broke: {code}", _AWAY, "unreachable")


def of_unopened(unopened: NotOpened) -> Failed:
    """There is no connection for any mail."""
    rest = _RESTS.get(unopened.kind, _AWAY)
    message = f"no connection to the smart host: {unopened.code}"
    return Failed(Verdict.NOT_THIS_MAIL, unopened.code, message, rest, unopened.kind)
