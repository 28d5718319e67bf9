"""The dialogue as a state machine: a line in, a reply out (RFC 5321, 4954, 3207, 1870, 3030, 6531, 9422).

Nothing here reads or writes a socket: the loop in `relay.smtp.connection` does, and asks `Session.expects` what to read
next, writes the replies, counts and logs.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import ClassVar, Final

from relay.core.outcomes import MessageLimit
from relay.smtp import replies
from relay.smtp.authentication import Authentication
from relay.smtp.command import LINE_LIMIT, Command, has_control, unknown
from relay.smtp.error_counts import ErrorCounts
from relay.smtp.framing import DataEnd, Flaw, discarded_at_most
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.spool import Body
from relay.smtp.submission import Limits, Login, Services, Submission, Verdict
from relay.smtp.transaction import Transaction, is_size

#: Octets of chunks that are read and thrown away for a client that has not authenticated, on one connection.
MAX_DISCARDED_BEFORE_AUTH = 1_000_000

_OF_LIMIT: Final = {MessageLimit.KEY: replies.KEY_TOO_BUSY, MessageLimit.ORIGIN: replies.ADDRESS_TOO_BUSY}


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


# By names of their own: in Python 3.11 it takes six times as long to find a member in its Enum, twenty times a mail.
COMMAND: Final = Expects.COMMAND
DATA: Final = Expects.DATA
CHUNK: Final = Expects.CHUNK
TLS: Final = Expects.TLS
_COMPLETE: Final = DataEnd.COMPLETE


class Session:
    """One client's dialogue."""

    def __init__(self, options: Options, services: Services, limits: Limits, connection_id: str) -> None:
        self._options = options
        self._services = services
        self._limits = limits
        self._connection_id = connection_id
        self._authentication = Authentication(options, services, limits)
        self._errors = ErrorCounts(options)
        self._secure = False
        self._greeted = False
        #: EHLO, not HELO: extensions may be used.
        self._extended = False
        self._transaction: Transaction | None = None
        #: The reply (4xx) to a MAIL that began no transaction, or to what ended one; until MAIL, RSET, EHLO or HELO.
        self._trouble: Reply | None = None
        self._messages = 0
        #: Octets of chunks that were thrown away since the transaction began.
        self._discarded = 0
        self.expects = COMMAND
        #: With Expects.DATA and CHUNK: where the octets go; None where they are read and thrown away.
        self.sink: Body | None = None
        #: With Expects.CHUNK: how many octets.
        self.chunk_size = 0
        self._chunk_is_last = False
        #: What the last message came to, until the loop takes it for its log.
        self.verdict: Verdict | None = None
        #: What the last AUTH came to, in the same way.
        self.auth_reply: Reply | None = None

    @property
    def max_message_size(self) -> int:
        """Octets that a message may have."""
        return self._options.max_message_size

    @property
    def authenticated(self) -> bool:
        """Whether the client has logged in."""
        return self._authentication.login is not None

    def greeting(self) -> Reply:
        """The banner."""
        return replies.greeting(self._options.hostname)

    def close(self) -> None:
        """The connection is gone; what it left unfinished is let go."""
        self._end_transaction()

    def fail(self, reply: Reply) -> Reply | None:
        """A failure of the relay (4xx) during something: nothing of the transaction is kept.

        None: the reply is due when the chunk has been read.
        """
        self._authentication.abandon()
        transaction = self._transaction
        if transaction is not None:
            self._conclude(Verdict(reply, "failed"))
        if transaction is None or not transaction.submitted:
            self._trouble = reply
        if self.expects is CHUNK:
            # Its octets are on their way, and must not be taken for commands.
            self.sink = None
            return None
        self.expects = COMMAND
        return reply

    # Lines

    def line(self, line: bytes) -> Reply | None:
        """Carries out one command, or takes one SASL response. None: the reply is due when the chunk has been read."""
        authentication = self._authentication
        if authentication.login is None:
            refusal = self._errors.before_auth()
            if refusal is not None:
                return refusal
            if authentication.in_progress:
                return self._authenticated(authentication.respond(line))
        verb, _, octets = line.partition(b" ")
        command = self._COMMANDS.get(verb) or self._COMMANDS.get(verb.rstrip(b"\t").upper())
        if command is None:
            return self._errors.command(unknown(verb))
        argument = octets.decode("utf-8", "surrogateescape").strip(" \t")
        if len(line) > command.line_limit:
            refusal = replies.LINE_TOO_LONG
        elif not argument.isprintable() and has_control(argument):
            refusal = replies.BAD_CHARACTER
        else:
            reply = command.carry_out(self, argument)
            return reply if reply is None or reply.code < 500 else command.counted_as(self._errors, reply)
        return command.malformed or self._errors.command(refusal)

    def flawed_line(self, flaw: Flaw) -> Reply:
        """A line that can't be carried out for its form alone."""
        in_exchange = self._authentication.abandon()
        self.expects = COMMAND
        if flaw is Flaw.ENDLESS:
            return replies.ENDLESS_LINE
        if flaw is Flaw.BARE_LINE_FEED:
            return replies.BARE_LINE_FEED
        return self._errors.command(replies.AUTH_LINE_TOO_LONG if in_exchange else replies.LINE_TOO_LONG)

    def _without_transaction(self) -> Reply:
        """The reply where there is none: MAIL comes first, or the reply about the failure that is the reason.

        Clients send MAIL and what follows it in one go (RFC 2920), and take 5xx for the end of the message.
        """
        return self._trouble or replies.MAIL_FIRST

    def _ehlo(self, argument: str) -> Reply:
        if not argument:
            return replies.HELLO_ARGUMENT
        self._hello(extended=True)
        options = self._options
        return replies.ehlo((options.hostname, *options.extensions(in_the_clear=self._in_the_clear)))

    def _helo(self, argument: str) -> Reply:
        if not argument:
            return replies.HELLO_ARGUMENT
        self._hello(extended=False)
        return replies.helo(self._options.hostname)

    def _hello(self, *, extended: bool) -> None:
        self._greeted = True
        self._extended = extended
        self._restart()

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
        self.expects = TLS
        return replies.READY_FOR_TLS

    def tls_started(self) -> None:
        """The handshake is done: everything learned before it is forgotten (RFC 3207 section 4.2)."""
        self.expects = COMMAND
        self._secure = True
        self._greeted = self._extended = False
        self._authentication.forget()
        self._restart()

    # AUTH

    def _auth(self, argument: str) -> Reply:
        if self._in_the_clear:
            return replies.ENCRYPTION_REQUIRED
        if not self._greeted:
            return replies.HELLO_FIRST
        if self._authentication.login is not None:
            return replies.ALREADY_AUTHENTICATED
        return self._authenticated(self._authentication.begin(argument))

    def _authenticated(self, reply: Reply) -> Reply:
        """After a step of an exchange."""
        self.expects = Expects.AUTH_RESPONSE if self._authentication.in_progress else COMMAND
        self.auth_reply = self._authentication.result
        return reply

    # The envelope

    def _mail(self, argument: str) -> Reply:
        if self._transaction is not None:
            return replies.NESTED_MAIL
        refusal = self._begin_transaction(argument)
        self._restart_sequence()
        if refusal is None:
            return replies.MAIL_OK
        if refusal.temporary:
            self._trouble = refusal
        else:
            self._errors.mail_refused()
        return refusal

    def _begin_transaction(self, argument: str) -> Reply | None:
        if not self._greeted:
            return replies.HELLO_FIRST
        login = self._authentication.login
        if login is None:
            if self._authentication.trouble:
                # A client that goes on without a login must not take our passing fault for a refusal of its message.
                return replies.NO_AUTH_FOR_NOW
            return replies.STARTTLS_REQUIRED if self._in_the_clear else replies.AUTH_REQUIRED
        outcome = Transaction.begin(argument, self._options, extended=self._extended)
        if isinstance(outcome, Reply):
            return outcome
        refusal = self._limit(login)
        if refusal is None:
            self._transaction = outcome
            self._messages += 1
            self._discarded = 0
        return refusal

    def _limit(self, login: Login) -> Reply | None:
        if self._options.max_messages and self._messages >= self._options.max_messages:
            return replies.TOO_MANY_MESSAGES
        limit = self._limits.admit(login.key.id)
        return None if limit is None else _OF_LIMIT[limit]

    def _rcpt(self, argument: str) -> Reply:
        if self._transaction is None:
            return self._without_transaction()
        return self._transaction.add_recipient(argument)

    def _rset(self, argument: str) -> Reply:
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        self._restart()
        return replies.OK

    # The message

    def _data(self, argument: str) -> Reply:
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        transaction = self._transaction
        if transaction is None:
            return self._without_transaction()
        if transaction.body is not None:
            return replies.CHUNKING_BEGUN
        if not transaction.recipient_count:
            return replies.RCPT_FIRST
        self.sink = transaction.open_body()
        self.expects = DATA
        return replies.SEND_DATA

    def end_of_data(self, end: DataEnd) -> Reply:
        """The data that followed 354 has been read into `sink`."""
        self.expects = COMMAND
        if end is _COMPLETE:
            return self._submit()
        if end is DataEnd.FALSE_END:
            return self._conclude(Verdict(replies.FALSE_END_OF_DATA, "bare_lf"))
        reply = replies.TOO_LARGE.closing() if end is DataEnd.ENDLESS else replies.TOO_LARGE
        return self._conclude(Verdict(reply, "too_large"))

    def _bdat(self, argument: str) -> Reply | None:
        size, _, last = argument.partition(" ")
        last = last.strip().upper()
        if not is_size(size) or last not in ("", "LAST"):
            # How many octets follow is unknown: there is no way back to commands.
            return replies.BDAT_SYNTAX
        self.expects = CHUNK
        self.chunk_size = int(size)
        self._chunk_is_last = bool(last)
        self.sink = None if self._transaction is None else self._transaction.open_chunk(self.chunk_size)
        if self.sink is None:
            self._discarded += self.chunk_size
            most = (
                discarded_at_most(self._options.max_message_size) if self.authenticated else MAX_DISCARDED_BEFORE_AUTH
            )
            if self._discarded > most:
                self.expects = COMMAND
                return self._refused_chunk().closing()
        return None

    def _refused_chunk(self) -> Reply:
        """Why the octets of this chunk are thrown away."""
        transaction = self._transaction
        if transaction is None:
            return self._without_transaction()
        return replies.RCPT_FIRST if not transaction.recipient_count else transaction.refusal or replies.TOO_LARGE

    def no_room(self) -> Reply:
        """The data, or the octets of the chunk, have been read, but could not be kept."""
        if self.expects is CHUNK and self._transaction is not None:
            self._transaction.refuse(replies.NO_ROOM)
            return self.end_of_chunk()
        self.expects = COMMAND
        return self._conclude(Verdict(replies.NO_ROOM, "no_room"))

    def end_of_chunk(self) -> Reply:
        """The octets of the announced chunk have been read into `sink`."""
        self.expects = COMMAND
        transaction = self._transaction
        if transaction is None or not transaction.recipient_count:
            reply = self._refused_chunk()
            return reply if reply.code < 500 else self._errors.sequel(reply)
        if self._chunk_is_last:
            refusal = transaction.refusal
            if refusal is None:
                return self._submit()
            return self._conclude(Verdict(refusal, "no_room" if refusal == replies.NO_ROOM else "too_large"))
        return replies.CHUNK_OK if transaction.refusal is None else transaction.refusal

    def _submit(self) -> Reply:
        transaction, login = self._transaction, self._authentication.login
        if transaction is None or login is None:
            raise AssertionError("data without a transaction")
        transaction.submitted = True
        submission = Submission(
            login,
            transaction.recipients,
            self._authentication.rule,
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
                self._errors.message_accepted()
            verdict.size, verdict.recipients = transaction.size, transaction.recipient_count
        self.verdict = verdict
        self._end_transaction()
        return verdict.reply

    def _restart(self) -> None:
        """Nothing of what was said of a message counts any more."""
        self._restart_sequence()
        self._end_transaction()

    def _restart_sequence(self) -> None:
        self._trouble = None
        self._errors.sequence_restarted()

    def _end_transaction(self) -> None:
        self.sink = None
        if self._transaction is not None:
            self._transaction.close()
            self._transaction = None

    _COMMANDS: ClassVar[dict[bytes, Command[Session]]] = {
        b"EHLO": Command(_ehlo),
        b"HELO": Command(_helo),
        b"STARTTLS": Command(_starttls),
        b"AUTH": Command(_auth, line_limit=LINE_LIMIT),
        b"MAIL": Command(_mail),
        b"RCPT": Command(_rcpt, ErrorCounts.recipient),
        b"DATA": Command(_data, ErrorCounts.sequel),
        # Whatever its argument was meant to be, octets follow that must not be taken for commands.
        b"BDAT": Command(_bdat, ErrorCounts.sequel, malformed=replies.BDAT_SYNTAX),
        b"RSET": Command(_rset),
        b"NOOP": Command.always(replies.OK),
        b"VRFY": Command.always(replies.CANNOT_VERIFY),
        b"HELP": Command.always(replies.HELP),
        b"QUIT": Command.always(replies.BYE),
        b"EXPN": Command.always(replies.NOT_IMPLEMENTED),
        b"ETRN": Command.always(replies.NOT_IMPLEMENTED),
        b"TURN": Command.always(replies.NOT_IMPLEMENTED),
    }
