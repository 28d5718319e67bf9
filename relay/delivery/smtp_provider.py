"""The provider `smtp`: any smart host, by SMTP (RFC 5321), over connections that are kept.

One mail is one transaction; several, where the host takes fewer recipients at a time. Recipients that it refuses do not
keep the mail from the others: they are named in `Sent.refused`.

Time limits. RFC 5321 section 4.5.3.2 wants minutes for each phase, and the lease of a claim (relay.postgres.leases) has
not so many for all of them together:

    connection, TLS, EHLO, AUTH     OPENING_SECONDS
    until the last octet is sent    DATA_SECONDS, all of the above and a turn for a connection included: a mail that is
                                    not complete is thrown away by the host, so nothing is unclear when this ends
    the answer to the end of data   until CALL_SECONDS after the beginning: the longest, since what comes later is lost,
                                    and the mail is sent twice
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from gevent.lock import BoundedSemaphore

from relay.core import metrics
from relay.core.errors import TooLate
from relay.core.frozen import frozen
from relay.core.supervision import run_once
from relay.delivery.large_mails import Busy
from relay.delivery.outcome import Failed, Outcome, RefusedRecipient, Sent, Verdict, of_silence
from relay.delivery.provider import Handover
from relay.delivery.smart_host import NotOpened, SmartHost
from relay.delivery.smtp_client import CLOSING, ConnectionBroken, Reply, SmtpConnection
from relay.delivery.smtp_text import END, stuffed
from relay.delivery.smtp_verdict import Phase, is_answer, is_too_many, of_reply

log = structlog.get_logger(__name__)

#: Seconds from the beginning of a call: see above.
OPENING_SECONDS: Final = 30.0
DATA_SECONDS: Final = 85.0
CALL_SECONDS: Final = 145.0
#: Seconds that a connection is kept without a mail. Servers wait for five minutes, and say so before they close.
IDLE_SECONDS: Final = 30.0
#: Mails after which a connection is closed, so that hosts behind one name share the load.
MOST_MAILS: Final = 100
#: Seconds for which a connection fewer is opened that the host has refused while it took mails on others.
FEWER_SECONDS: Final = 60.0
#: Seconds for the answer to QUIT.
QUIT_SECONDS: Final = 1.0
#: Seconds for what a host has said before it closed in the midst of a mail.
_LAST_WORD_SECONDS: Final = 1.0

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
#: Octets of a text that are sent together with its end.
_AT_ONCE: Final = 65_536


class _Stale(Exception):
    """A kept connection turned out to be closed before the mail was begun: a new one is to be tried."""


class _Full(Exception):
    """The host takes no further connection, and mails are on their way on others."""


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


class SmtpProvider:
    """Hands mails to one smart host. `connections`: at most so many are open.

    `repeats_unclear`: where the host has a mail for some recipients, and may have it for others, these are tried again;
    else they count as refused.
    """

    name = "smtp"
    region: str | None = "smtp"

    def __init__(self, host: SmartHost, *, connections: int, repeats_unclear: bool = True) -> None:
        self._host = host
        self._repeats_unclear = repeats_unclear
        self._places = BoundedSemaphore(connections)
        #: The latest used at the end.
        self._idle: deque[SmtpConnection] = deque()
        self._closing_planned = False
        #: Mails that have a place.
        self._placed = 0

    def send(self, handover: Handover) -> Outcome:
        """As `relay.delivery.provider.Provider` says. Raises Busy where no connection becomes free, and TooLate."""
        began = time.monotonic()
        while True:
            if not self._places.acquire(timeout=max(0.0, began + DATA_SECONDS - OPENING_SECONDS - time.monotonic())):
                raise Busy
            self._placed += 1
            full = False
            try:
                return self._sent(handover, began)
            except _Full:
                full = True
            finally:
                self._placed -= 1
                if full:
                    run_once("smtp_connections", self._places.release, after=FEWER_SECONDS)
                else:
                    self._places.release()

    def close(self) -> None:
        """Closes the connections that are idle. All of them together wait for the host as long as one would."""
        until = time.monotonic() + QUIT_SECONDS
        while self._idle:
            self._idle.pop().quit(until)

    def _sent(self, handover: Handover, began: float) -> Outcome:
        connection = self._kept()
        if connection is not None:
            try:
                return self._over(connection, handover, began, kept=True)
            except _Stale:
                pass
        try:
            connection = self._host.open(min(time.monotonic() + OPENING_SECONDS, began + DATA_SECONDS))
        except NotOpened as unopened:
            # A limit of the host is no fault: the mail waits for one of the connections that it has taken. Where TLS is
            # there from the start a reply without it is an SSLError.
            if (unopened.code.startswith("4") or unopened.code == "SSLError") and self._placed > 1:
                raise _Full from None
            rest = _RESTS.get(unopened.kind, _AWAY)
            message = f"no connection to the smart host: {unopened.code}"
            return Failed(Verdict.NOT_THIS_MAIL, unopened.code, message, rest, unopened.kind)
        try:
            return self._over(connection, handover, began, kept=False)
        except _Stale as stale:
            return _broken(str(stale))

    def _over(self, connection: SmtpConnection, handover: Handover, began: float, *, kept: bool) -> Outcome:
        """Hands a mail over on a connection, which is kept or closed then. Raises _Stale and TooLate."""
        transaction = _MailTransfer(
            connection, self._host, handover, began, kept=kept, repeats_unclear=self._repeats_unclear
        )
        try:
            outcome = transaction.run()
        except TooLate:
            self._keep(connection)
            raise
        except BaseException:
            transaction.connection.close()
            raise
        connection = transaction.connection
        if not transaction.usable:
            connection.close()
        elif connection.mails >= MOST_MAILS:
            connection.quit(time.monotonic() + QUIT_SECONDS)
        else:
            self._keep(connection)
        return outcome

    # Connections that are kept.

    def _kept(self) -> SmtpConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.used <= IDLE_SECONDS and connection.silent():
                return connection
            connection.close()
        return None

    def _keep(self, connection: SmtpConnection) -> None:
        connection.used = time.monotonic()
        self._idle.append(connection)
        self._plan_closing()

    def _plan_closing(self) -> None:
        if self._idle and not self._closing_planned:
            self._closing_planned = True
            run_once("smtp_idle_connections", self._close_idle, after=IDLE_SECONDS)

    def _close_idle(self) -> None:
        self._closing_planned = False
        until = time.monotonic() - IDLE_SECONDS
        while self._idle and self._idle[0].used <= until:
            self._idle.popleft().quit(time.monotonic() + QUIT_SECONDS)
        self._plan_closing()


class _MailTransfer:
    """One mail on one connection. `usable`: whether it can carry another one then.

    `connection`: the one that it was given, or, where the host closed that behind a refusal, another one.
    """

    def __init__(
        self,
        connection: SmtpConnection,
        host: SmartHost,
        handover: Handover,
        began: float,
        *,
        kept: bool,
        repeats_unclear: bool,
    ) -> None:
        self.connection = connection
        self._host = host
        self._handover = handover
        self._data_until = began + DATA_SECONDS
        self._answer_until = began + CALL_SECONDS
        #: A connection that was kept may have been closed since.
        self._kept = kept
        self._repeats_unclear = repeats_unclear
        self.usable = True

    def run(self) -> Outcome:
        """What became of the mail. Raises _Stale and TooLate where the host knows nothing of it, and NoRoom."""
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
                refused += [self._named(address, reply, passing=True) for address, reply in drop.refused.items()]
                dropped += [self._failed(reply, "RCPT") for reply in drop.refused.values()]
                left = tuple(address for address in left if address not in drop.refused)
                step = self._reopened()
                if step is None:
                    continue
            if isinstance(step.outcome, Failed):
                if not message_id:
                    return _most_hopeful([step.outcome, *dropped])
                # The others have the mail by now; these are tried again by themselves.
                failed, passing = step.outcome, True
                if failed.verdict is Verdict.UNCLEAR:
                    passing = self._repeats_unclear
                    metrics.DELIVERY_UNCLEAR.labels("found").inc()
                    metrics.DELIVERY_UNCLEAR.labels("again" if passing else "failed").inc()
                refused += [_refused(address, failed.code, failed.message, passing=passing) for address in left]
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
                raise _Stale(broken.code) from None
            return self._gone(recipients, replies, broken)
        mail, data = replies[0], replies[-1]
        if data.code == CLOSING:
            self.usable = False
            if self._kept and mail is data:
                raise _Stale(data.codes)
            return _Step(self._failed(data, "MAIL" if mail is data else "RCPT"))
        complete = len(replies) == len(commands)
        if mail.kind != 2:
            # The host goes on to read a text that is none.
            self.usable = not (complete and data.kind == 3)
            return _Step(self._failed(mail, "MAIL"))
        answers = dict(zip(recipients, replies[1:], strict=False))
        refused = {address: reply for address, reply in answers.items() if reply.kind != 2}
        if len(refused) == len(recipients):
            if complete and data.kind == 3:
                self._end_empty()
            return _Step(self._all_refused(list(refused.values())))
        if data.kind != 3:
            return _Step(self._failed(data, "DATA"))
        outcome = self._text()
        if isinstance(outcome, Failed):
            return _Step(outcome)
        left = tuple(address for address, reply in refused.items() if is_too_many(reply))
        named = tuple(self._named(address, reply) for address, reply in refused.items() if address not in left)
        return _Step(Sent(outcome.message_id, named), left)

    def _gone(self, recipients: Sequence[str], replies: Sequence[Reply], broken: ConnectionBroken) -> _Step:
        """The connection ended ahead of the text: what the host had refused by then was the reason, it may be.

        Raises _Dropped.
        """
        if broken.code not in _CLOSED or not replies or replies[-1].kind not in (4, 5):
            return _Step(_broken(broken.code))
        if replies[0].kind != 2:
            return _Step(self._failed(replies[0], "MAIL"))
        refused = {
            address: reply for address, reply in zip(recipients, replies[1:], strict=False) if reply.kind in (4, 5)
        }
        if len(refused) < len(recipients):
            raise _Dropped(refused)
        return _Step(self._all_refused(list(refused.values())))

    def _reopened(self) -> _Step | None:
        """Goes on over a new connection; a failure where there is none."""
        self.connection.close()
        try:
            self.connection = self._host.open(min(time.monotonic() + OPENING_SECONDS, self._data_until))
        except NotOpened as unopened:
            return _Step(_broken(unopened.code))
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
            return Sent(self._message_id(reply))
        return self._failed(reply, "text")

    def _cut_off(self, broken: ConnectionBroken) -> Outcome:
        """The host went away or spoke in the midst of the text; it may have said why."""
        until = min(time.monotonic() + _LAST_WORD_SECONDS, self._answer_until)
        try:
            reply = self.connection.reply(until)
        except ConnectionBroken:
            return _broken(broken.code)
        if reply.kind in (4, 5):
            return self._failed(reply, "text")
        if reply.kind == 3:
            return _broken("NotExpected")
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

    def _all_refused(self, replies: Sequence[Reply]) -> Failed:
        """The mail was refused for each of its recipients: the reply that leaves most hope decides."""
        return _most_hopeful([self._failed(reply, "RCPT") for reply in replies])

    def _failed(self, reply: Reply, phase: Phase) -> Failed:
        return of_reply(reply, phase, f"{phase}: {self._shown(reply)}")

    def _named(self, address: str, reply: Reply, *, passing: bool = False) -> RefusedRecipient:
        failed = self._failed(reply, "RCPT")
        passing = passing or failed.verdict is not Verdict.PERMANENT
        return _refused(address, failed.code, self._shown(reply), passing=passing)

    def _shown(self, reply: Reply) -> str:
        """A reply for the row: with its text, unless that repeats what is secret."""
        text = reply.text[:_MAX_TEXT]
        return f"{reply.codes} {text}".rstrip() if self._host.may_show(reply.text) else reply.codes

    def _message_id(self, reply: Reply) -> str:
        """The name by which the host knows the mail; else its Message-ID."""
        for pattern in _MESSAGE_IDS:
            found = pattern.search(reply.text)
            if found and found[1] not in self._handover.recipients:
                return found[1]
        return f"{self._handover.email_id}@{self._handover.sender.rpartition('@')[2]}"


#: Verdicts on one recipient, from the one that lets a mail be tried again to the one that ends it.
_HOPE: Final = (Verdict.UNCLEAR, Verdict.NOT_THIS_MAIL, Verdict.PASSING, Verdict.EITHER, Verdict.PERMANENT)

#: Codes of a connection that the host has closed.
_CLOSED: Final = frozenset(("ConnectionClosed", "ConnectionResetError", "BrokenPipeError"))


def _most_hopeful(failures: Sequence[Failed]) -> Failed:
    return min(failures, key=lambda failed: _HOPE.index(failed.verdict))


def _refused(address: str, code: str, message: str, *, passing: bool) -> RefusedRecipient:
    return RefusedRecipient(address=address, passing=passing, code=code, message=message)


def _broken(code: str) -> Failed:
    """The connection ended, and the host does not have the mail."""
    return Failed(Verdict.EITHER, code, f"the connection to the smart host broke: {code}", _AWAY, "unreachable")
