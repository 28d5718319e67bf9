"""The dialogue as a state machine: a line in, a reply out (RFC 5321, 4954, 3207, 1870, 3030, 6531, 9422).

Nothing here reads or writes a socket: the loop in `relay.smtp.connection` does, and asks `Session.expects` what to read
next, writes the replies, counts and logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import ClassVar

from relay.address import BadAddress, comparison_form, normalise
from relay.records import RecipientRule
from relay.smtp import replies
from relay.smtp.framing import DataEnd, Flaw
from relay.smtp.path import Path, parse_path
from relay.smtp.replies import Reply
from relay.smtp.sasl import MECHANISMS, Challenge, Credentials, Exchange, Failure, Outcome
from relay.spool import Body
from relay.submission import Login, Services, Submission, Verdict

#: The user name that makes the envelope alone decide who receives, for this connection.
ENVELOPE_USERNAME = "envelope"

#: RFC 5321 section 4.5.3.1.4 asks for 512 octets; parameters add to it, and generous clients are harmless.
COMMAND_LINE_LIMIT = 4096
#: RFC 4954 section 4, and with it the most that any line may have, CRLF included.
LINE_LIMIT = 12288

#: First words of protocols that a browser can be made to speak to us; answering them line by line would be execution.
_FOREIGN_VERBS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"PATCH", b"TRACE"))
_CONTROL = re.compile("[\\x00-\\x1f\\x7f]")


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


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator decided, as far as the dialogue goes."""

    hostname: str
    #: Octets; advertised by SIZE.
    max_message_size: int
    max_recipients: int
    recipient_rule: RecipientRule = RecipientRule.MERGE
    allow_utf8_local_parts: bool = False
    #: A certificate is configured: STARTTLS is offered, and AUTH needs it.
    tls_available: bool = False
    #: Errors of syntax or order that one connection may make before it is closed.
    max_errors: int = 20
    #: Failed AUTHs that one connection may make before it is closed.
    max_auth_failures: int = 5
    #: Octets of a message that stay in memory.
    spool_threshold: int = 1_000_000
    spool_directory: str | None = None


@dataclass(slots=True)
class Transaction:
    """From MAIL to the end of data (RFC 5321 section 3.3)."""

    smtputf8: bool
    #: Forward-paths by the form in which they compare.
    recipients: dict[str, str] = field(default_factory=dict)
    #: What BDAT has brought so far.
    body: Body | None = None
    #: Why the chunks to come will be refused.
    refusal: Reply | None = None


class Session:
    """One client's dialogue."""

    def __init__(self, options: Options, services: Services, connection_id: str, *, secure: bool = False) -> None:
        self._options = options
        self._services = services
        self._rule = options.recipient_rule
        self._connection_id = connection_id
        self._secure = secure
        self._extended = False
        self._greeted = False
        self._transaction: Transaction | None = None
        self._exchange: Exchange | None = None
        self._errors = 0
        self._auth_failures = 0
        self.login: Login | None = None
        self.expects = Expects.COMMAND
        #: With Expects.CHUNK: how many octets.
        self.chunk_size = 0
        self._chunk_is_last = False
        #: What the last message came to, until the loop takes it for its log.
        self.verdict: Verdict | None = None
        #: What the last AUTH came to, likewise.
        self.auth_reply: Reply | None = None

    def greeting(self) -> Reply:
        """The banner."""
        return replies.greeting(self._options.hostname)

    @property
    def max_message_size(self) -> int:
        """Octets that a message may have."""
        return self._options.max_message_size

    def new_body(self) -> Body:
        """Where the data of the next message goes."""
        return Body(self._options.spool_threshold, self._options.spool_directory)

    # Lines

    def line(self, line: bytes) -> Reply | None:
        """Carries out one command, or takes one SASL response. None: the reply is due when the chunk has been read."""
        if self._exchange is not None:
            return self._advance(self._exchange.respond(line))
        verb, _, argument = line.partition(b" ")
        name = self._COMMANDS.get(verb.rstrip(b"\t").upper())
        if name is None:
            return self._error(_unknown(verb, line))
        if len(line) > COMMAND_LINE_LIMIT and name != "_auth":
            return self._error(replies.LINE_TOO_LONG)
        text = argument.decode("utf-8", "surrogateescape").strip(" \t")
        if _CONTROL.search(text):
            return self._error(replies.BAD_CHARACTER)
        command: Callable[[str], Reply | None] = getattr(self, name)
        reply = command(text)
        return self._error(reply) if reply is not None and 500 <= reply.code <= 504 else reply

    def flawed_line(self, flaw: Flaw) -> Reply:
        """A line that can't be carried out for its form alone."""
        in_exchange, self._exchange = self._exchange is not None, None
        if flaw is Flaw.ENDLESS:
            return replies.TOO_MANY_ERRORS
        if flaw is Flaw.BARE_LINE_FEED:
            return replies.BARE_LINE_FEED
        return self._error(replies.AUTH_LINE_TOO_LONG if in_exchange else replies.LINE_TOO_LONG)

    def _error(self, reply: Reply) -> Reply:
        """Counts a line that made no sense; the connection ends when there were too many."""
        self.expects = Expects.COMMAND
        self._errors += 1
        return replies.TOO_MANY_ERRORS if self._errors > self._options.max_errors else reply

    def _ehlo(self, argument: str) -> Reply:
        if not argument:
            return replies.HELLO_ARGUMENT
        self._hello(extended=True)
        return replies.ehlo(self._options.hostname, self._extensions())

    def _helo(self, argument: str) -> Reply:
        if not argument:
            return replies.HELLO_ARGUMENT
        self._hello(extended=False)
        return replies.helo(self._options.hostname)

    def _hello(self, *, extended: bool) -> None:
        self._greeted = True
        self._extended = extended
        self._end_transaction()

    def _extensions(self) -> list[str]:
        offered = [
            f"SIZE {self._options.max_message_size}",
            "8BITMIME",
            "PIPELINING",
            "ENHANCEDSTATUSCODES",
            "SMTPUTF8",
            "CHUNKING",
            f"LIMITS RCPTMAX={self._options.max_recipients}",
        ]
        if self._options.tls_available and not self._secure:
            offered.append("STARTTLS")
        else:
            offered.append("AUTH PLAIN LOGIN")
        return offered

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
        self._end_transaction()
        self._secure = True
        self._greeted = False
        self._extended = False
        self.login = None
        self.expects = Expects.COMMAND

    # AUTH

    def _auth(self, argument: str) -> Reply:
        mechanism, _, response = argument.partition(" ")
        if self._options.tls_available and not self._secure:
            return replies.ENCRYPTION_REQUIRED
        if not self._greeted:
            return replies.HELLO_FIRST
        if self.login is not None:
            return replies.ALREADY_AUTHENTICATED
        if self._transaction is not None:
            return replies.AUTH_IN_TRANSACTION
        kind = MECHANISMS.get(mechanism.upper())
        if kind is None:
            return replies.AUTH_MECHANISM
        exchange = kind()
        self._exchange = exchange
        response = response.strip(" \t")
        return self._advance(exchange.begin(response.encode("utf-8", "surrogateescape") if response else None))

    def _advance(self, outcome: Outcome) -> Reply:
        if isinstance(outcome, Challenge):
            self.expects = Expects.AUTH_RESPONSE
            return replies.challenge(outcome.text)
        self._exchange = None
        self.expects = Expects.COMMAND
        if outcome is Failure.CANCELLED:
            return replies.AUTH_CANCELLED
        if not isinstance(outcome, Credentials):
            return self._error(replies.AUTH_MALFORMED)
        login = self._services.authenticate(outcome.password)
        self.auth_reply = login if isinstance(login, Reply) else replies.AUTHENTICATED
        if isinstance(login, Reply):
            self._auth_failures += 1
            return login.closing() if self._auth_failures >= self._options.max_auth_failures else login
        self.login = login
        if outcome.username.strip().lower() == ENVELOPE_USERNAME:
            self._rule = RecipientRule.ENVELOPE
        return replies.AUTHENTICATED

    # The envelope

    def _mail(self, argument: str) -> Reply:
        if not self._greeted:
            return replies.HELLO_FIRST
        if self.login is None:
            insecure = self._options.tls_available and not self._secure
            return replies.STARTTLS_REQUIRED if insecure else replies.AUTH_REQUIRED
        if self._transaction is not None:
            return replies.NESTED_MAIL
        path = _path_behind("FROM:", argument)
        if path is None:
            return replies.MAIL_SYNTAX
        refusal = self._check_mail_parameters(path.parameters)
        if refusal is not None:
            return refusal
        smtputf8 = "SMTPUTF8" in path.parameters
        if not smtputf8 and not path.local.isascii():
            return replies.UTF8_NOT_ANNOUNCED
        self._transaction = Transaction(smtputf8)
        return replies.MAIL_OK

    def _check_mail_parameters(self, parameters: dict[str, str]) -> Reply | None:
        for keyword, value in parameters.items():
            if not self._extended:
                return replies.UNKNOWN_PARAMETER
            if keyword == "SIZE":
                if not (value.isascii() and value.isdigit() and len(value) <= 20):
                    return replies.SIZE_SYNTAX
                if int(value) > self._options.max_message_size:
                    return replies.TOO_LARGE
            elif keyword == "BODY":
                if value.upper() not in ("7BIT", "8BITMIME"):
                    return replies.BODY_SYNTAX
            elif keyword == "SMTPUTF8":
                if value:
                    return replies.UNKNOWN_PARAMETER
            elif keyword != "AUTH":
                # AUTH= (RFC 4954 section 5) names whom a trusted relay speaks for: nobody is one, it is ignored.
                return replies.UNKNOWN_PARAMETER
        return None

    def _rcpt(self, argument: str) -> Reply:
        transaction = self._transaction
        if transaction is None:
            return replies.MAIL_FIRST
        if transaction.body is not None:
            return replies.CHUNKING_BEGUN
        path = _path_behind("TO:", argument)
        if path is None or path.null:
            return replies.RCPT_SYNTAX
        if path.parameters:
            return replies.UNKNOWN_PARAMETER
        if not transaction.smtputf8 and not path.local.isascii():
            return replies.UTF8_NOT_ANNOUNCED
        try:
            address = normalise(path.local, path.domain, allow_utf8_local_part=self._options.allow_utf8_local_parts)
        except BadAddress as error:
            return replies.UTF8_LOCAL_PART if error.utf8_local_part else replies.BAD_RECIPIENT
        mailbox = comparison_form(address)
        if mailbox not in transaction.recipients and len(transaction.recipients) >= self._options.max_recipients:
            return replies.TOO_MANY_RECIPIENTS
        transaction.recipients.setdefault(mailbox, address)
        return replies.RCPT_OK

    # The message

    def _data(self, argument: str) -> Reply:
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        transaction = self._transaction
        if transaction is None:
            return replies.MAIL_FIRST
        if transaction.body is not None:
            return replies.CHUNKING_BEGUN
        if not transaction.recipients:
            return replies.RCPT_FIRST
        self.expects = Expects.DATA
        return replies.SEND_DATA

    def end_of_data(self, end: DataEnd, body: Body) -> Reply:
        """The data that followed 354 has been read; `end` is never CUT_OFF, which has nobody to answer."""
        self.expects = Expects.COMMAND
        if end is DataEnd.COMPLETE:
            return self._submit(body)
        self._end_transaction()
        body.close()
        return self._refuse(replies.FALSE_END_OF_DATA if end is DataEnd.FALSE_END else replies.TOO_LARGE)

    def _bdat(self, argument: str) -> Reply | None:
        size, _, last = argument.partition(" ")
        last = last.strip().upper()
        if not (size.isascii() and size.isdigit() and len(size) <= 20) or last not in ("", "LAST"):
            # How many octets follow is unknown: there is no way back to commands.
            return replies.BDAT_SYNTAX
        self.expects = Expects.CHUNK
        self.chunk_size = int(size)
        self._chunk_is_last = bool(last)
        return None

    def chunk_sink(self) -> Body | None:
        """Where the octets of the announced chunk go; None where they are read and thrown away (RFC 3030 section 2)."""
        transaction = self._transaction
        if transaction is None or not transaction.recipients or transaction.refusal is not None:
            return None
        if transaction.body is None:
            transaction.body = self.new_body()
        if transaction.body.size + self.chunk_size > self._options.max_message_size:
            transaction.refusal = replies.TOO_LARGE
            transaction.body.close()
            return None
        return transaction.body

    def end_of_chunk(self) -> Reply:
        """The octets of the announced chunk have been read."""
        self.expects = Expects.COMMAND
        transaction = self._transaction
        if transaction is None:
            return self._error(replies.MAIL_FIRST)
        if not transaction.recipients:
            return self._error(replies.RCPT_FIRST)
        if transaction.refusal is not None:
            refusal = transaction.refusal
            if self._chunk_is_last:
                self._end_transaction()
            return self._refuse(refusal)
        if not self._chunk_is_last:
            return replies.CHUNK_OK
        body, transaction.body = transaction.body, None
        return self._submit(body if body is not None else self.new_body())

    def fail(self, reply: Reply) -> Reply:
        """Trouble of ours in the midst of something: nothing of the transaction is kept."""
        self.expects = Expects.COMMAND
        self._exchange = None
        if self._transaction is not None:
            self.verdict = Verdict(reply, "failed")
        self._end_transaction()
        return reply

    def _refuse(self, reply: Reply) -> Reply:
        """A message that is refused before anyone looked into it."""
        self.verdict = Verdict(reply, "refused")
        return reply

    def _submit(self, body: Body) -> Reply:
        transaction, login = self._transaction, self.login
        self._transaction = None
        if transaction is None or login is None:
            raise AssertionError("data without a transaction")
        try:
            verdict = self._services.accept(
                Submission(login, tuple(transaction.recipients.values()), self._rule, body, self._connection_id)
            )
        finally:
            body.close()
        self.verdict = replace(verdict, size=body.size, recipients=len(transaction.recipients))
        return verdict.reply

    def _rset(self, argument: str) -> Reply:
        if argument:
            return replies.NO_ARGUMENT_ALLOWED
        self._end_transaction()
        return replies.OK

    def _end_transaction(self) -> None:
        if self._transaction is not None and self._transaction.body is not None:
            self._transaction.body.close()
        self._transaction = None

    def close(self) -> None:
        """The connection is gone; what it left unfinished is let go."""
        self._end_transaction()

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

    _COMMANDS: ClassVar[dict[bytes, str]] = {
        b"EHLO": "_ehlo",
        b"HELO": "_helo",
        b"STARTTLS": "_starttls",
        b"AUTH": "_auth",
        b"MAIL": "_mail",
        b"RCPT": "_rcpt",
        b"DATA": "_data",
        b"BDAT": "_bdat",
        b"RSET": "_rset",
        b"NOOP": "_noop",
        b"VRFY": "_vrfy",
        b"HELP": "_help",
        b"QUIT": "_quit",
        b"EXPN": "_not_implemented",
        b"ETRN": "_not_implemented",
        b"TURN": "_not_implemented",
    }


def _path_behind(keyword: str, argument: str) -> Path | None:
    if argument[: len(keyword)].upper() != keyword:
        return None
    return parse_path(argument[len(keyword) :])


def _unknown(verb: bytes, line: bytes) -> Reply:
    if verb.upper() in _FOREIGN_VERBS:
        return replies.NOT_SMTP
    return replies.BAD_CHARACTER if _CONTROL.search(line.decode("latin-1")) else replies.UNKNOWN_COMMAND
