"""Every reply that the relay gives: code, enhanced status code (RFC 3463) and text (RFC 5321 section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Final

from relay.core.frozen import frozen
from relay.core.memo import memoised

#: RFC 5321 section 4.5.3.1.5: a reply line, CRLF included.
MAX_LINE_OCTETS: Final = 512


@frozen
class Reply:
    """One reply, of one line or several. `enhanced` is empty where RFC 2034 has none: greeting, EHLO, 3xx."""

    code: int
    enhanced: str
    lines: tuple[str, ...]
    #: The connection ends after this reply.
    closes: bool = False
    #: The octets for the wire, once they were asked for: most replies are said again and again.
    _octets: bytes = field(default=b"", init=False, repr=False, compare=False)

    def encode(self) -> bytes:
        """The octets for the wire. A line that is too long is cut; anything but printable ASCII becomes `?`."""
        if not self._octets:
            object.__setattr__(self, "_octets", _encoded(self.code, self.enhanced, self.lines))
        return self._octets

    @property
    def positive(self) -> bool:
        """Whether the command was carried out or may go on (2xx, 3xx)."""
        return self.code < 400

    @property
    def temporary(self) -> bool:
        """Whether the same again may succeed later (4xx)."""
        return 400 <= self.code < 500

    def closing(self) -> Reply:
        """The same reply, and the end of the connection after it."""
        return replace(self, closes=True)


def _encoded(code: int, enhanced: str, lines: tuple[str, ...]) -> bytes:
    prefix = f"{enhanced} " if enhanced else ""
    last = len(lines) - 1
    if not last:
        return _line(f"{code} {prefix}{lines[0]}")
    return b"".join(_line(f"{code}{' ' if number == last else '-'}{prefix}{text}") for number, text in enumerate(lines))


def _line(text: str) -> bytes:
    octets = text.encode("ascii", "replace")[: MAX_LINE_OCTETS - 2]
    if not text.isprintable():
        octets = bytes(octet if 32 <= octet < 127 else 63 for octet in octets)
    return octets + b"\r\n"


def _reply(code: int, enhanced: str, text: str, *, closes: bool = False) -> Reply:
    return Reply(code, enhanced, (text,), closes)


# perf: encoded once, not for each connection, which is 4 % of its CPU: ./scripts/bench --before COMMIT --quick
@memoised(entries=16, octets=1000)
def greeting(hostname: str) -> Reply:
    """The first line that a client reads."""
    return _reply(220, "", f"{hostname} ESMTP OpenSend relay")


@memoised(entries=16, octets=4000)
def ehlo(lines: tuple[str, ...]) -> Reply:
    """The answer to EHLO: the host name, and one extension a line (RFC 5321 section 4.1.1.1)."""
    return Reply(250, "", lines)


def helo(hostname: str) -> Reply:
    """The answer to HELO, which offers no extension."""
    return _reply(250, "", hostname)


def queued(email_id: str) -> Reply:
    """The row is committed; its job is or will be published."""
    return _reply(250, "2.0.0", f"Ok: queued as {email_id}")


def already_queued(email_id: str) -> Reply:
    """A repeat: all its recipients have this message already, under the id that is named."""
    return _reply(250, "2.0.0", f"Ok: already queued as {email_id}")


def left_out(reply: Reply, count: int) -> Reply:
    """The same reply, and how many entries of the header's recipients can't be sent to."""
    if not count:
        return reply
    what = "entry in To, Cc and Bcc was no address" if count == 1 else "entries in To, Cc and Bcc were not addresses"
    *lines, last = reply.lines
    text = f"{last} ({count} {what} and {'was' if count == 1 else 'were'} left out)"
    return Reply(reply.code, reply.enhanced, (*lines, text), reply.closes)


def challenge(text: str = "") -> Reply:
    """A SASL challenge; `text` is Base64 (RFC 4954 section 4)."""
    return _reply(334, "", text)


# Positive
OK: Final = _reply(250, "2.0.0", "Ok")
MAIL_OK: Final = _reply(250, "2.1.0", "Ok")
RCPT_OK: Final = _reply(250, "2.1.5", "Ok")
CHUNK_OK: Final = _reply(250, "2.0.0", "Ok: chunk received")
BYE: Final = _reply(221, "2.0.0", "Bye", closes=True)
HELP: Final = _reply(214, "2.0.0", "The password is an OpenSend API key; the user name is ignored, except for envelope")
CANNOT_VERIFY: Final = _reply(252, "2.5.0", "Not verified; send the message and it will be tried")
READY_FOR_TLS: Final = _reply(220, "2.0.0", "Ready to start TLS")
AUTHENTICATED: Final = _reply(235, "2.7.0", "Authentication succeeded")
SEND_DATA: Final = _reply(354, "", "End data with <CRLF>.<CRLF>")

# Authentication and TLS
BAD_KEY: Final = _reply(535, "5.7.8", "Authentication failed: the password must be a valid OpenSend API key")
AUTH_REQUIRED: Final = _reply(530, "5.7.0", "Authentication required")
STARTTLS_REQUIRED: Final = _reply(530, "5.7.0", "Must issue a STARTTLS command first")
ENCRYPTION_REQUIRED: Final = _reply(538, "5.7.11", "Encryption required for authentication: issue STARTTLS first")
AUTH_UNAVAILABLE: Final = _reply(454, "4.7.0", "Temporary authentication failure, try again later")
NO_AUTH_FOR_NOW: Final = _reply(451, "4.7.0", "Authentication was not possible just now, try again later")
AUTH_CANCELLED: Final = _reply(501, "5.7.0", "Authentication cancelled")
AUTH_MALFORMED: Final = _reply(501, "5.5.2", "Authentication response is not valid Base64 of the expected form")
AUTH_LINE_TOO_LONG: Final = _reply(500, "5.5.6", "Authentication line too long")
AUTH_MECHANISM: Final = _reply(504, "5.5.4", "Mechanism not supported: use PLAIN or LOGIN")
ALREADY_AUTHENTICATED: Final = _reply(503, "5.5.1", "Already authenticated")
TLS_ACTIVE: Final = _reply(503, "5.5.1", "TLS is already active")
TLS_NOT_OFFERED: Final = _reply(502, "5.5.1", "STARTTLS is not offered")
KEY_REVOKED: Final = _reply(535, "5.7.8", "The API key is no longer valid", closes=True)

# Syntax and order of commands
UNKNOWN_COMMAND: Final = _reply(500, "5.5.2", "Command not recognised")
NOT_IMPLEMENTED: Final = _reply(502, "5.5.1", "Command not implemented")
LINE_TOO_LONG: Final = _reply(500, "5.5.2", "Line too long")
ENDLESS_LINE: Final = LINE_TOO_LONG.closing()
BAD_CHARACTER: Final = _reply(500, "5.5.2", "Control characters and NUL are not allowed in a command")
BARE_LINE_FEED: Final = _reply(500, "5.5.2", "Bare LF: every line must end with CRLF", closes=True)
NO_ARGUMENT_ALLOWED: Final = _reply(501, "5.5.4", "This command takes no argument")
HELLO_ARGUMENT: Final = _reply(501, "5.5.4", "A host name is required")
HELLO_FIRST: Final = _reply(503, "5.5.1", "Send EHLO or HELO first")
MAIL_SYNTAX: Final = _reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
RCPT_SYNTAX: Final = _reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
BDAT_SYNTAX: Final = _reply(501, "5.5.4", "Syntax: BDAT <size> [LAST]", closes=True)
SIZE_SYNTAX: Final = _reply(501, "5.5.4", "SIZE takes a number of octets")
SMTPUTF8_SYNTAX: Final = _reply(501, "5.5.4", "SMTPUTF8 takes no value")
BODY_SYNTAX: Final = _reply(501, "5.5.4", "BODY takes 7BIT or 8BITMIME")
RET_SYNTAX: Final = _reply(501, "5.5.4", "RET takes FULL or HDRS")
ENVID_SYNTAX: Final = _reply(501, "5.5.4", "ENVID takes xtext of at most 100 characters")
NOTIFY_SYNTAX: Final = _reply(501, "5.5.4", "NOTIFY takes NEVER, or a list of SUCCESS, FAILURE and DELAY")
ORCPT_SYNTAX: Final = _reply(501, "5.5.4", "ORCPT takes an address type, a semicolon and xtext, at most 500 characters")
UNKNOWN_PARAMETER: Final = _reply(555, "5.5.4", "Parameter not recognised or not implemented")
NESTED_MAIL: Final = _reply(503, "5.5.1", "Nested MAIL command")
MAIL_FIRST: Final = _reply(503, "5.5.1", "Send MAIL first")
RCPT_FIRST: Final = _reply(503, "5.5.1", "Send RCPT first")
CHUNKING_BEGUN: Final = _reply(503, "5.5.1", "DATA and BDAT can't be mixed in a transaction")
TOO_MANY_ERRORS: Final = _reply(421, "4.7.0", "Too many errors", closes=True)
NOT_SMTP: Final = _reply(421, "4.7.0", "This is an SMTP server", closes=True)

# Addresses
BAD_RECIPIENT: Final = _reply(553, "5.1.3", "Recipient must be local@domain, with a valid domain name")
UTF8_LOCAL_PART: Final = _reply(553, "5.6.7", "A local part that is not ASCII can't be delivered")
UTF8_NOT_ANNOUNCED: Final = _reply(553, "5.6.7", "An address that is not ASCII needs the SMTPUTF8 parameter")
TOO_MANY_RECIPIENTS: Final = _reply(452, "4.5.3", "Too many recipients")

# The message
TOO_LARGE: Final = _reply(552, "5.3.4", "Message too large")
ATTACHMENTS_TOO_LARGE: Final = _reply(552, "5.3.4", "Attachments exceed 40 MB after Base64 encoding")
FALSE_END_OF_DATA: Final = _reply(
    550, "5.6.11", "Bare LF around a lone dot: lines must end with CRLF, and the message with CRLF.CRLF", closes=True
)
COMPOSED_TOO_LARGE: Final = _reply(552, "5.3.4", "The message exceeds 40 MB once it is encoded for delivery")
UNREADABLE: Final = _reply(554, "5.6.0", "The message takes longer to read than any message may")
HEADER_TOO_LARGE: Final = _reply(552, "5.3.4", "The header has more fields, lines or octets than are read")
TOO_MANY_ADDRESSES: Final = _reply(550, "5.5.3", "Too many recipients: a header field has more addresses than are read")
NO_SENDER: Final = _reply(
    550, "5.6.0", "The From header field has no address: set it to one that your API key may send from"
)
UNSTORABLE: Final = _reply(554, "5.6.3", "The message holds characters that the database can't store")
NO_RECIPIENTS: Final = _reply(550, "5.6.0", "No recipient in To, Cc, Bcc or the envelope")

# Temporary failures of the relay
TRY_LATER: Final = _reply(451, "4.3.0", "Temporary failure, try again later")
FAILED: Final = _reply(421, "4.3.0", "Temporary failure, try again later", closes=True)
NO_ROOM: Final = _reply(452, "4.3.1", "Out of room for a message of this size just now, try again later")
SHUTTING_DOWN: Final = _reply(421, "4.3.2", "Shutting down, try again later", closes=True)
TOO_MANY_CONNECTIONS: Final = _reply(421, "4.3.2", "Too many connections, try again later", closes=True)
TIMED_OUT: Final = _reply(421, "4.4.2", "Timed out waiting for the client", closes=True)

# Limits
TOO_MANY_FROM_ADDRESS: Final = _reply(421, "4.7.0", "Too many connections from your address", closes=True)
NOT_PROXIED: Final = _reply(421, "4.7.0", "A PROXY protocol header is required here", closes=True)
AUTH_REFUSED: Final = _reply(
    421, "4.7.0", "Too many failed authentications from your address, try again later", closes=True
)
TOO_MANY_BEFORE_AUTH: Final = _reply(421, "4.7.0", "Too many commands without authentication", closes=True)
TOO_MANY_REFUSED: Final = _reply(421, "4.7.0", "Too many refused recipients without a message", closes=True)
TOO_MANY_MESSAGES: Final = _reply(421, "4.7.0", "Too many messages on one connection, open another", closes=True)
KEY_TOO_BUSY: Final = _reply(450, "4.7.1", "Too many messages with this API key, try again in a minute")
ADDRESS_TOO_BUSY: Final = _reply(450, "4.7.1", "Too many messages from your address, try again in a minute")


def wrong_domain(domain: str) -> Reply:
    """From is outside the domain that the key is restricted to."""
    return _reply(550, "5.7.1", f"The API key may only send from {domain}")


def suppressed(reasons: Sequence[tuple[str, str]]) -> Reply:
    """Recipients on the suppression list: (address, reason), as many as a reply of reasonable length names."""
    shown = [f"{address} ({reason})" for address, reason in reasons[:_SHOWN_RECIPIENTS]]
    more = len(reasons) - len(shown)
    text = "Recipient suppressed: " + ", ".join(shown) + (f" and {more} more" if more else "")
    return _reply(550, "5.7.1", text)


_SHOWN_RECIPIENTS = 3


def too_many_recipients(count: int, most: int) -> Reply:
    """Header and envelope together name more recipients than one message may have.

    Permanent, unlike the reply to RCPT (RFC 5321 section 4.5.3.1.10): the header is the message's own, so the same
    message can't be taken later. RFC 3463 has 5.5.3 for it.
    """
    return _reply(550, "5.5.3", f"Too many recipients: To, Cc, Bcc and RCPT name {count}, a message may have {most}")


def bad_tag(detail: str) -> Reply:
    """X-OpenSend-Tag is against the contract's limits; `detail` says what is wrong."""
    return _reply(550, "5.6.0", f"Bad X-OpenSend-Tag: {detail}")


def refused_extension(extension: str) -> Reply:
    """An attachment's file name ends in what Amazon SES refuses."""
    return _reply(552, "5.7.0", f"Attachments that end in .{extension} can't be delivered")


def bad_idempotency_key(detail: str) -> Reply:
    """The idempotency header is empty or too long."""
    return _reply(550, "5.6.0", f"Bad idempotency key: {detail}")
