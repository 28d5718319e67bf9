"""One mail over one connection to a smart host: its transactions, from MAIL to the answer to the end of data.

One mail is one transaction; several, where the host takes fewer recipients at a time. Recipients that it refuses do not
keep the mail from the others: they are named in `Sent.refused`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relay.core import metrics
from relay.core.frozen import frozen
from relay.delivery.outcome import Failed, Outcome, RefusedRecipient, Sent, Verdict, of_silence
from relay.delivery.provider import Handover
from relay.delivery.smart_host import NotOpened, SmartHost
from relay.delivery.smtp_client import CLOSING, ConnectionBroken, Reply, SmtpConnection
from relay.delivery.smtp_outcome import Outcomes, most_hopeful, of_broken
from relay.delivery.smtp_text import END, stuffed
from relay.delivery.smtp_verdict import is_answer, is_too_many

#: Seconds for what a host has said before it closed in the midst of a mail.
_LAST_WORD_SECONDS: Final = 1.0
#: Octets of a text that are sent together with its end.
_AT_ONCE: Final = 65_536
#: Codes of a connection that the host has closed.
_CLOSED: Final = frozenset(("ConnectionClosed", "ConnectionResetError", "BrokenPipeError"))


class Stale(Exception):
    """A kept connection turned out to be closed before the mail was begun: a new one is to be tried."""


class _Dropped(Exception):
    """The host refused a recipient and closed the connection, before the text of the mail: the others may get it."""

    def __init__(self, refused: Mapping[str, Reply]) -> None:
        super().__init__()
        self.refused = refused


@frozen
class _Step:
    """What became of one transaction. `left`: recipients beyond what the host takes in one."""

    outcome: Outcome
    left: Sequence[str] = ()


class MailTransactions:
    """The transactions of one mail. `usable`: whether the connection can carry another one then.

    `connection`: the one that it was given, or, where the host closed that behind a refusal, another one.
    """

    def __init__(
        self,
        connection: SmtpConnection,
        host: SmartHost,
        handover: Handover,
        *,
        open_another: Callable[[], SmtpConnection],
        data_until: float,
        answer_until: float,
        kept: bool,
        repeats_unclear: bool,
    ) -> None:
        """`data_until`, `answer_until`: moments of time.monotonic(), for the last octet and for the answer to it.

        `open_another`: as `SmartHost.open`. `kept`: a connection that carried another mail may have been closed since.
        `repeats_unclear`: see `relay.delivery.smtp_provider`.
        """
        self.connection = connection
        self._handover = handover
        self._outcomes = Outcomes(host, handover)
        self._open = open_another
        self._data_until = data_until
        self._answer_until = answer_until
        self._kept = kept
        self._repeats_unclear = repeats_unclear
        self.usable = True

    def run(self) -> Outcome:
        """What became of the mail. Raises Stale and TooLate where the host knows nothing of it, and NoRoom."""
        unfit = self._unfit()
        if unfit is not None:
            return unfit
        if self._handover.permit is not None:
            self._handover.permit.use()
        left: Sequence[str] = tuple(dict.fromkeys(self._handover.recipients))
        message_id, refused = "", []
        dropped: list[Failed] = []
        while left:
            step: _Step | None
            try:
                step = self._step(left)
            except _Dropped as drop:
                # By itself each of them will be refused again; what the host says to it counts then.
                refused += [
                    self._outcomes.named(address, reply, passing=True) for address, reply in drop.refused.items()
                ]
                dropped += [self._outcomes.failed(reply, "RCPT") for reply in drop.refused.values()]
                left = tuple(address for address in left if address not in drop.refused)
                step = self._reopened()
                if step is None:
                    continue
            if isinstance(step.outcome, Failed):
                if not message_id:
                    return most_hopeful([step.outcome, *dropped])
                # The others have the mail by now; these are tried again by themselves.
                failed, passing = step.outcome, True
                if failed.verdict is Verdict.UNCLEAR:
                    passing = self._repeats_unclear
                    metrics.DELIVERY_UNCLEAR.labels("found").inc()
                    metrics.DELIVERY_UNCLEAR.labels("again" if passing else "failed").inc()
                refused += [
                    RefusedRecipient(address=address, passing=passing, code=failed.code, message=failed.message)
                    for address in left
                ]
                break
            message_id = message_id or step.outcome.message_id
            refused += step.outcome.refused
            left, self._kept = step.left, False
        return Sent(message_id, tuple(refused))

    def _unfit(self) -> Failed | None:
        """Why this host can't take the mail, by what it offers."""
        limit = self.connection.size_limit
        if 0 < limit < self._handover.content.size:
            return Failed(Verdict.PERMANENT, "MessageTooLarge", f"the smart host takes {limit} octets", kind="rejected")
        return None

    def _step(self, recipients: Sequence[str]) -> _Step:
        """One transaction: MAIL, RCPT for each, DATA, and the text if a recipient was taken."""
        commands = [self._mail(), *(f"RCPT TO:<{address}>" for address in recipients), "DATA"]
        replies: list[Reply] = []
        try:
            self._ask(commands, replies)
        except ConnectionBroken as broken:
            self.usable = False
            if self._kept and not replies:
                raise Stale(broken.code) from None
            return self._gone(recipients, replies, broken)
        mail, data = replies[0], replies[-1]
        if data.code == CLOSING:
            self.usable = False
            if self._kept and mail is data:
                raise Stale(data.codes)
            return _Step(self._outcomes.failed(data, "MAIL" if mail is data else "RCPT"))
        complete = len(replies) == len(commands)
        if mail.kind != 2:
            # The host goes on to read a text that is none.
            self.usable = not (complete and data.kind == 3)
            return _Step(self._outcomes.failed(mail, "MAIL"))
        answers = dict(zip(recipients, replies[1:], strict=False))
        refused = {address: reply for address, reply in answers.items() if reply.kind != 2}
        if len(refused) == len(recipients):
            if complete and data.kind == 3:
                self._end_empty()
            return _Step(self._outcomes.all_refused(list(refused.values())))
        if data.kind != 3:
            return _Step(self._outcomes.failed(data, "DATA"))
        outcome = self._text()
        if isinstance(outcome, Failed):
            return _Step(outcome)
        left = tuple(address for address, reply in refused.items() if is_too_many(reply))
        named = tuple(self._outcomes.named(address, reply) for address, reply in refused.items() if address not in left)
        return _Step(Sent(outcome.message_id, named), left)

    def _gone(self, recipients: Sequence[str], replies: Sequence[Reply], broken: ConnectionBroken) -> _Step:
        """The connection ended ahead of the text: what the host had refused by then was the reason, it may be.

        Raises _Dropped.
        """
        if broken.code not in _CLOSED or not replies or replies[-1].kind not in (4, 5):
            return _Step(of_broken(broken.code))
        if replies[0].kind != 2:
            return _Step(self._outcomes.failed(replies[0], "MAIL"))
        refused = {
            address: reply for address, reply in zip(recipients, replies[1:], strict=False) if reply.kind in (4, 5)
        }
        if len(refused) < len(recipients):
            raise _Dropped(refused)
        return _Step(self._outcomes.all_refused(list(refused.values())))

    def _reopened(self) -> _Step | None:
        """Goes on over a new connection; a failure where there is none."""
        self.connection.close()
        try:
            self.connection = self._open()
        except NotOpened as unopened:
            return _Step(of_broken(unopened.code))
        self.usable, self._kept = True, False
        return None

    def _mail(self) -> str:
        # Mails are 7-bit and their addresses ASCII (relay.delivery.compose): no other extension is needed.
        size = f" SIZE={self._handover.content.size}" if "SIZE" in self.connection.extensions else ""
        return f"MAIL FROM:<{self._handover.sender}>{size}"

    def _ask(self, commands: Sequence[str], replies: list[Reply]) -> None:
        """Adds the reply to each command, as far as they make sense. Raises ConnectionBroken."""
        connection, until = self.connection, self._data_until
        pipelining = "PIPELINING" in connection.extensions
        before = ["RSET"] if connection.dirty else []
        connection.dirty = True
        if pipelining:
            connection.put([*before, *commands], until)
        elif before:
            connection.put(before, until)
        connection.mails += 1
        if before and connection.reply(until).kind != 2:
            raise ConnectionBroken("NoReset")
        for number, command in enumerate(commands, 1):
            if not pipelining:
                if number == len(commands) and all(reply.kind != 2 for reply in replies[1:]):
                    return
                connection.put([command], until)
            reply = connection.reply(until)
            if not is_answer(reply, "DATA" if number == len(commands) else "RCPT"):
                raise ConnectionBroken("NotExpected")
            replies.append(reply)
            if reply.code == CLOSING or (not pipelining and replies[0].kind != 2):
                return
        if connection.babbled:  # one of them may be no answer
            raise ConnectionBroken("SaidUnasked")

    def _text(self) -> Outcome:
        """The mail itself, to the answer to its end."""
        connection = self.connection
        last = b""
        try:
            for piece in stuffed(self._handover.content):
                if last:
                    connection.send(last, self._data_until)
                last = piece
            if len(last) > _AT_ONCE:  # it takes time, in which the host may speak
                connection.send(last, self._data_until)
                last = b""
            connection.demand(last + END, 1, self._data_until)
        except ConnectionBroken as broken:
            # Without the last octet the host does not have the mail.
            self.usable = False
            return self._cut_off(broken)
        try:
            reply = connection.reply(self._answer_until)
        except ConnectionBroken as broken:
            self.usable = False
            return of_silence(broken.code, "the smart host did not answer to the end of data", began=True)
        connection.dirty = False
        self.usable = reply.code != CLOSING
        if not is_answer(reply, "text"):
            self.usable = False
            return of_silence(reply.codes, "the smart host gave no answer to the end of data", began=True)
        if reply.kind == 2:
            return Sent(self._outcomes.message_id(reply))
        return self._outcomes.failed(reply, "text")

    def _cut_off(self, broken: ConnectionBroken) -> Outcome:
        """The host went away or spoke in the midst of the text; it may have said why."""
        until = min(time.monotonic() + _LAST_WORD_SECONDS, self._answer_until)
        try:
            reply = self.connection.reply(until)
        except ConnectionBroken:
            return of_broken(broken.code)
        if reply.kind in (4, 5):
            return self._outcomes.failed(reply, "text")
        if reply.kind == 3:
            return of_broken("NotExpected")
        return of_silence(reply.codes, "the smart host answered ahead of the end of data", began=True)

    def _end_empty(self) -> None:
        """Ends the text that the host asks for although it has refused all recipients (RFC 2920 section 3.1)."""
        try:
            self.connection.demand(END, 1, self._data_until)
            reply = self.connection.reply(self._data_until)
        except ConnectionBroken:
            self.usable = False
        else:
            self.connection.dirty = False
            self.usable = reply.code != CLOSING and is_answer(reply, "text")
