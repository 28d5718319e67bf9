"""The dialogue as a state machine: a line in, a reply out (RFC 5321, 4954, 3207, 1870, 3030, 6531, 9422).

Nothing here reads or writes a socket: the loop in `relay.smtp.connection` does, and asks `Session.expects` what to read
next, writes the replies, counts and logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import ClassVar

from config.settings import RecipientRule
from relay.smtp import replies
from relay.smtp.framing import DataEnd, Flaw, discarded_at_most
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.sasl import MECHANISMS, Challenge, Credentials, Exchange, Failure, Outcome
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Services, Submission, Verdict
from relay.smtp.transaction import Transaction, is_size

#: The user name that makes the envelope alone decide who receives, for this connection.
ENVELOPE_USERNAME = "envelope"

#: RFC 5321 section 4.5.3.1.4 asks for 512 octets; parameters add to it, and generous clients are harmless.
COMMAND_LINE_LIMIT = 4096
#: RFC 4954 section 4, and with it the most that any line may have, CRLF included.
LINE_LIMIT = 12288

#: First words of protocols that a browser can be made to speak to us; answering them line by line would be execution.
#: And of the PROXY protocol, from somebody who is not trusted to speak for others.
_FOREIGN_VERBS = frozenset(b"GET HEAD POST PUT DELETE OPTIONS CONNECT PATCH TRACE PROXY".split())
#: Blanks apart, which tabs are.
_CONTROL = re.compile("[\\x00-\\x08\\x0a-\\x1f\\x7f]")
#: Replies to what no working client says, or says here.
_NONSENSE = frozenset((500, 501, 502, 503, 504, 530, 538, 555))

#: Octets of chunks that are read and thrown away for a client that has not authenticated, on one connection.
MAX_DISCARDED_BEFORE_AUTH = 1_000_000
#: Refused recipients that any client may have, however few recipients a transaction may have.
_LEAST_REFUSED = 100


class Expects(Enum):
    """What the loop has to read next."""

    COMMAND = auto()
    #: A SASL response.
    AUTH_RESPONSE = auto()
    #: Message data up to its end, for `end_of_data`.
    DATA = auto()
    #: `Session.chunk_size` octets, for `end_of_chunk`.
    CHUNK = auto()
    #: A TLS handshake, for `tls_started`.
    TLS = auto()


class Session:
    """One client's dialogue."""

    def __init__(
        self,
        options: Options,
        services: Services,
        connection_id: str,
        admit: Callable[[Login], Reply | None] | None = None,
    ) -> None:
        """`admit` is asked at each MAIL why this login may not send another message now."""
        self._options = options
        self._services = services
        self._admit = admit
        self._connection_id = connection_id
        self._secure = False
        self._greeted = False
        #: EHLO, not HELO: extensions may be used.
        self._extended = False
        self._login: Login | None = None
        self._rule = options.recipient_rule
        self._exchange: Exchange | None = None
        self._transaction: Transaction | None = None
        #: Commands behind a refused MAIL that are no errors of their own: the client had sent them along with it.
        self._excused = 0
        self._errors = 0
        self._auth_failures = 0
        self._before_auth = 0
        self._messages = 0
        #: Recipients refused since the last message was accepted.
        self._refused_recipients = 0
        #: Octets of chunks that were thrown away since the transaction began.
        self._discarded = 0
        #: The last AUTH failed for reasons of ours.
        self._auth_trouble = False
        self.expects = Expects.COMMAND
        #: With Expects.DATA and CHUNK: where the octets go; None where they are read and thrown away.
        self.sink: Body | None = None
        #: With Expects.CHUNK: how many octets.
        self.chunk_size = 0
        self._chunk_is_last = False
        #: What the last message came to, until the loop takes it for its log.
        self.verdict: Verdict | None = None
        #: What the last AUTH came to, likewise.
        self.auth_reply: Reply | None = None

    @property
    def max_message_size(self) -> int:
        """Octets that a message may have."""
        return self._options.max_message_size

    @property
    def authenticated(self) -> bool:
        """Whether the client has logged in."""
        return self._login is not None

    def greeting(self) -> Reply:
        """The banner."""
        return replies.greeting(self._options.hostname)

    def close(self) -> None:
        """The connection is gone; what it left unfinished is let go."""
        self._end_transaction()

    def fail(self, reply: Reply, outcome: str = "failed") -> Reply:
        """Trouble of ours in the midst of something: nothing of the transaction is kept."""
        self.expects = Expects.COMMAND
        self._exchange = None
        return reply if self._transaction is None else self._conclude(Verdict(reply, outcome))

    # Lines

    def line(self, line: bytes) -> Reply | None:
        """Carries out one command, or takes one SASL response. None: the reply is due when the chunk has been read."""
        if self._login is None:
            self._before_auth += 1
            if self._before_auth > self._options.max_before_auth:
                return replies.TOO_MANY_BEFORE_AUTH
        if self._exchange is not None:
            return self._counted(self._advance(self._exchange.respond(line)))
        verb, _, octets = line.partition(b" ")
        command = self._COMMANDS.get(verb) or self._COMMANDS.get(verb.rstrip(b"\t").upper())
        if command is None:
            return self._counted(_unknown(verb))
        argument = octets.decode("utf-8", "surrogateescape").strip(" \t")
        if len(line) > COMMAND_LINE_LIMIT and command is not Session._auth:
            refusal = replies.LINE_TOO_LONG
        elif not argument.isprintable() and _CONTROL.search(argument):
            refusal = replies.BAD_CHARACTER
        else:
            if command is Session._rcpt and self._transaction is not None:
                return self._counted_recipient(self._transaction.add_recipient(argument))
            reply = command(self, argument)
            return reply if reply is None or reply.code < 500 else self._counted(reply)
        # Whatever BDAT's argument was meant to be, octets follow that must not be taken for commands.
        return replies.BDAT_SYNTAX if command is Session._bdat else self._counted(refusal)

    def flawed_line(self, flaw: Flaw) -> Reply:
        """A line that can't be carried out for its form alone."""
        in_exchange, self._exchange = self._exchange is not None, None
        self.expects = Expects.COMMAND
        if flaw is Flaw.ENDLESS:
            return replies.ENDLESS_LINE
        if flaw is Flaw.BARE_LINE_FEED:
            return replies.BARE_LINE_FEED
        return self._counted(replies.AUTH_LINE_TOO_LONG if in_exchange else replies.LINE_TOO_LONG)

    def _counted(self, reply: Reply) -> Reply:
        """The reply, or the end of the connection when it made no sense for the umpteenth time."""
        if reply.code not in _NONSENSE:
            return reply
        if reply is replies.MAIL_FIRST and self._excused:
            self._excused -= 1
            return reply
        self._errors += 1
        return replies.TOO_MANY_ERRORS if self._errors > self._options.max_errors else reply

    def _counted_recipient(self, reply: Reply) -> Reply:
        """The same for recipients. An application may well have a list of bad ones, as long as there are good ones."""
        if reply.code < 500:
            return reply
        self._refused_recipients += 1
        most = max(self._options.max_recipients, _LEAST_REFUSED)
        return replies.TOO_MANY_REFUSED if self._refused_recipients > most else reply

    def _ehlo(self, argument: str) -> Reply:
        if not argument:
            return replies.HELLO_ARGUMENT
        self._hello(extended=True)
        return replies.ehlo(self._options.hostname, self._options.extensions(in_the_clear=self._in_the_clear))

    def _helo(self, argument: str) -> Reply:
        if not argument:
            return replies.HELLO_ARGUMENT
        self._hello(extended=False)
        return replies.helo(self._options.hostname)

    def _hello(self, *, extended: bool) -> None:
        self._greeted = True
        self._extended = extended
        self._end_transaction()

    # TLS

    @property
    def _in_the_clear(self) -> bool:
        """Whether the client could encrypt and does not."""
        return self._options.tls_available and not self._secure

    def _starttls(self, argument: str) -> Reply:
        if self._secure:
            return replies.TLS_ACTIVE
        if not self._options.tls_available:
            return replies.TLS_NOT_OFFERED
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        self.expects = Expects.TLS
        return replies.READY_FOR_TLS

    def tls_started(self) -> None:
        """The handshake is done: everything learned before it is forgotten (RFC 3207 section 4.2)."""
        self.expects = Expects.COMMAND
        self._secure = True
        self._greeted = self._extended = False
        self._login = None
        self._auth_trouble = False
        self._rule = self._options.recipient_rule
        self._end_transaction()

    # AUTH

    def _auth(self, argument: str) -> Reply:
        if self._in_the_clear:
            return replies.ENCRYPTION_REQUIRED
        if not self._greeted:
            return replies.HELLO_FIRST
        if self._login is not None:
            return replies.ALREADY_AUTHENTICATED
        mechanism, _, response = argument.partition(" ")
        kind = MECHANISMS.get(mechanism.upper())
        if kind is None:
            return replies.AUTH_MECHANISM
        self._exchange = kind()
        response = response.strip(" \t")
        return self._advance(self._exchange.begin(response.encode("utf-8", "surrogateescape") if response else None))

    def _advance(self, outcome: Outcome) -> Reply:
        if isinstance(outcome, Challenge):
            self.expects = Expects.AUTH_RESPONSE
            return replies.challenge(outcome.text)
        self._exchange = None
        self.expects = Expects.COMMAND
        if outcome is Failure.CANCELLED:
            return replies.AUTH_CANCELLED
        if not isinstance(outcome, Credentials):
            return replies.AUTH_MALFORMED
        self._auth_trouble = True  # until it is known to be otherwise: what is raised here is trouble of ours as well
        login = self._services.authenticate(outcome.password)
        self._auth_trouble = isinstance(login, Reply) and login.temporary
        if isinstance(login, Reply):
            self.auth_reply = login
            if not login.temporary:
                self._auth_failures += 1
            return login.closing() if self._auth_failures >= self._options.max_auth_failures else login
        self.auth_reply = replies.AUTHENTICATED
        self._login = login
        if outcome.username.strip().lower() == ENVELOPE_USERNAME:
            self._rule = RecipientRule.ENVELOPE
        return replies.AUTHENTICATED

    # The envelope

    def _mail(self, argument: str) -> Reply:
        refusal = self._begin_transaction(argument)
        if refusal is None:
            return replies.MAIL_OK
        self._excused = self._options.max_recipients + 1
        return refusal

    def _begin_transaction(self, argument: str) -> Reply | None:
        if not self._greeted:
            return replies.HELLO_FIRST
        if self._login is None:
            if self._auth_trouble:
                # A client that goes on without a login must not take our passing fault for a refusal of its message.
                return replies.NO_AUTH_FOR_NOW
            return replies.STARTTLS_REQUIRED if self._in_the_clear else replies.AUTH_REQUIRED
        if self._transaction is not None:
            return replies.NESTED_MAIL
        outcome = Transaction.begin(argument, self._options, extended=self._extended)
        if isinstance(outcome, Reply):
            return outcome
        refusal = self._limit(self._login)
        if refusal is None:
            self._transaction = outcome
            self._messages += 1
            self._discarded = 0
        return refusal

    def _limit(self, login: Login) -> Reply | None:
        if self._options.max_messages and self._messages >= self._options.max_messages:
            return replies.TOO_MANY_MESSAGES
        return None if self._admit is None else self._admit(login)

    def _rcpt(self, _argument: str) -> Reply:
        # With a transaction: see `line`.
        return replies.MAIL_FIRST

    def _rset(self, argument: str) -> Reply:
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        self._end_transaction()
        return replies.OK

    # The message

    def _data(self, argument: str) -> Reply:
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        transaction = self._transaction
        if transaction is None:
            return replies.MAIL_FIRST
        if transaction.body is not None:
            return replies.CHUNKING_BEGUN
        if not transaction.recipient_count:
            return replies.RCPT_FIRST
        self.expects = Expects.DATA
        self.sink = transaction.open_body()
        return replies.SEND_DATA

    def end_of_data(self, end: DataEnd) -> Reply:
        """The data that followed 354 has been read into `sink`."""
        self.expects = Expects.COMMAND
        if end is DataEnd.COMPLETE:
            return self._submit()
        if end is DataEnd.FALSE_END:
            reply = replies.FALSE_END_OF_DATA
        else:
            reply = replies.TOO_LARGE.closing() if end is DataEnd.ENDLESS else replies.TOO_LARGE
        return self._conclude(Verdict(reply, "refused"))

    def _bdat(self, argument: str) -> Reply | None:
        size, _, last = argument.partition(" ")
        last = last.strip().upper()
        if not is_size(size) or last not in ("", "LAST"):
            # How many octets follow is unknown: there is no way back to commands.
            return replies.BDAT_SYNTAX
        self.expects = Expects.CHUNK
        self.chunk_size = int(size)
        self._chunk_is_last = bool(last)
        self.sink = None if self._transaction is None else self._transaction.open_chunk(self.chunk_size)
        if self.sink is None:
            self._discarded += self.chunk_size
            most = discarded_at_most(self._options.max_message_size) if self._login else MAX_DISCARDED_BEFORE_AUTH
            if self._discarded > most:
                self.expects = Expects.COMMAND
                return self._refused_chunk().closing()
        return None

    def _refused_chunk(self) -> Reply:
        """Why the octets of this chunk are thrown away."""
        transaction = self._transaction
        if transaction is None:
            return replies.MAIL_FIRST
        return replies.RCPT_FIRST if not transaction.recipient_count else transaction.refusal or replies.TOO_LARGE

    def no_room(self) -> Reply:
        """The data, or the octets of the chunk, have been read, but could not be kept."""
        if self.expects is Expects.CHUNK and self._transaction is not None:
            self._transaction.refuse(replies.NO_ROOM)
            return self.end_of_chunk()
        return self.fail(replies.NO_ROOM, "no_room")

    def end_of_chunk(self) -> Reply:
        """The octets of the announced chunk have been read into `sink`."""
        self.expects = Expects.COMMAND
        transaction = self._transaction
        if transaction is None:
            return self._counted(replies.MAIL_FIRST)
        if not transaction.recipient_count:
            return self._counted(replies.RCPT_FIRST)
        if self._chunk_is_last:
            refusal = transaction.refusal
            return self._submit() if refusal is None else self._conclude(Verdict(refusal, "refused"))
        return replies.CHUNK_OK if transaction.refusal is None else transaction.refusal

    def _submit(self) -> Reply:
        transaction, login = self._transaction, self._login
        if transaction is None or login is None:
            raise AssertionError("data without a transaction")
        submission = Submission(
            login,
            transaction.recipients,
            self._rule,
            transaction.open_body(),
            self._connection_id,
            transaction.reverse_path,
        )
        return self._conclude(self._services.submit(submission))

    def _conclude(self, verdict: Verdict) -> Reply:
        """The message is answered, one way or the other."""
        transaction = self._transaction
        if transaction is not None:
            if verdict.reply.positive:
                self._refused_recipients = 0
            verdict.size, verdict.recipients = transaction.size, transaction.recipient_count
        self.verdict = verdict
        self._end_transaction()
        return verdict.reply

    def _end_transaction(self) -> None:
        self.sink = None
        if self._transaction is not None:
            self._transaction.close()
            self._transaction = None

    # The rest

    def _noop(self, _argument: str) -> Reply:
        return replies.OK

    def _help(self, _argument: str) -> Reply:
        return replies.HELP

    def _vrfy(self, _argument: str) -> Reply:
        return replies.CANNOT_VERIFY

    def _not_implemented(self, _argument: str) -> Reply:
        return replies.NOT_IMPLEMENTED

    def _quit(self, _argument: str) -> Reply:
        return replies.BYE

    _COMMANDS: ClassVar[dict[bytes, Callable[[Session, str], Reply | None]]] = {
        b"EHLO": _ehlo,
        b"HELO": _helo,
        b"STARTTLS": _starttls,
        b"AUTH": _auth,
        b"MAIL": _mail,
        b"RCPT": _rcpt,
        b"DATA": _data,
        b"BDAT": _bdat,
        b"RSET": _rset,
        b"NOOP": _noop,
        b"VRFY": _vrfy,
        b"HELP": _help,
        b"QUIT": _quit,
        b"EXPN": _not_implemented,
        b"ETRN": _not_implemented,
        b"TURN": _not_implemented,
    }


def _unknown(verb: bytes) -> Reply:
    if verb.upper() in _FOREIGN_VERBS:
        return replies.NOT_SMTP
    return replies.BAD_CHARACTER if _CONTROL.search(verb.decode("latin-1")) else replies.UNKNOWN_COMMAND
