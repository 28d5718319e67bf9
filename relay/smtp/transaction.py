"""One mail transaction: the envelope that MAIL and RCPT build up, and the data that DATA or BDAT brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.core.address import BadAddress, comparison_form, domain_of, normalise
from relay.smtp import replies
from relay.smtp.dsn import is_envelope_id, is_notify, is_original_recipient, is_return
from relay.smtp.options import Options
from relay.smtp.path import Path, parse_path
from relay.smtp.replies import Reply
from relay.smtp.spool import Body


class Transaction:
    """From MAIL to the end of data (RFC 5321 section 3.3)."""

    def __init__(
        self,
        options: Options,
        reverse_path: tuple[str, str],
        *,
        extended: bool,
        smtputf8: bool,
        announced_size: int,
    ) -> None:
        #: Local part, without its quotes, and domain, as they were given; both empty for the null path.
        self.reverse_path = reverse_path
        self._options = options
        self._extended = extended
        self._announced_size = announced_size
        self._smtputf8 = smtputf8
        #: Forward-paths by the form in which they compare.
        self._recipients: dict[str, str] = {}
        #: What DATA or BDAT has brought so far; None before either.
        self.body: Body | None = None
        #: Why all further chunks are refused.
        self.refusal: Reply | None = None
        #: Its data is complete: whatever becomes of it now is the answer to the message.
        self.submitted = False

    @classmethod
    def begin(cls, argument: str, options: Options, *, extended: bool) -> Transaction | Reply:
        """The transaction that MAIL opens with this argument, or why it doesn't. `extended`: the client sent EHLO.

        SES sets another reverse-path.
        """
        path = _path_behind("FROM:", argument)
        if path is None:
            return replies.MAIL_SYNTAX
        smtputf8, announced_size = False, 0
        if path.parameters:
            refusal = _check_parameters(path.parameters, options) if extended else replies.UNKNOWN_PARAMETER
            if refusal is not None:
                return refusal
            smtputf8 = "SMTPUTF8" in path.parameters
            announced_size = int(path.parameters.get("SIZE", 0))
        if not smtputf8 and not path.local.isascii():
            return replies.UTF8_NOT_ANNOUNCED
        reverse_path = path.local, path.domain
        return cls(options, reverse_path, extended=extended, smtputf8=smtputf8, announced_size=announced_size)

    @property
    def recipients(self) -> tuple[str, ...]:
        """The forward-paths in their order, in the stored form (relay.core.address), each once."""
        return tuple(self._recipients.values())

    @property
    def recipient_count(self) -> int:
        """How many they are."""
        return len(self._recipients)

    @property
    def size(self) -> int:
        """Octets of data so far."""
        return 0 if self.body is None else self.body.size

    def add_recipient(self, argument: str) -> Reply:
        """Carries out RCPT with this argument."""
        if self.body is not None:
            return replies.CHUNKING_BEGUN
        path = _path_behind("TO:", argument)
        if path is None or path.null:
            return replies.RCPT_SYNTAX
        if path.parameters:
            refusal = self._check_recipient(path.parameters)
            if refusal is not None:
                return refusal
        if not self._smtputf8 and not path.local.isascii():
            return replies.UTF8_NOT_ANNOUNCED
        try:
            address = normalise(path.local, path.domain, allow_utf8_local_part=self._options.allow_utf8_local_parts)
        except BadAddress as error:
            return replies.UTF8_LOCAL_PART if error.utf8_local_part else replies.BAD_RECIPIENT
        if "." not in domain_of(address):
            # SES refuses all of a mail for it.
            return replies.BAD_RECIPIENT
        mailbox = comparison_form(address)
        if mailbox not in self._recipients and len(self._recipients) >= self._options.max_recipients:
            return replies.TOO_MANY_RECIPIENTS
        self._recipients.setdefault(mailbox, address)
        return replies.RCPT_OK

    def _check_recipient(self, parameters: dict[str, str]) -> Reply | None:
        """As `_check_parameters`, of RCPT. What they ask for is not done: OpenSend reports deliveries by webhook."""
        for keyword, value in parameters.items():
            if keyword == "NOTIFY" and self._extended:
                if not is_notify(value):
                    return replies.NOTIFY_SYNTAX
            elif keyword == "ORCPT" and self._extended:
                if not is_original_recipient(value, utf8=self._smtputf8):
                    return replies.ORCPT_SYNTAX
            else:
                return replies.UNKNOWN_PARAMETER
        return None

    def open_body(self) -> Body:
        """Where the data goes; the same for every chunk."""
        if self.body is None:
            self.body = Body(self._options.spool_threshold, self._options.spool_directory, self._announced_size)
        return self.body

    def open_chunk(self, size: int) -> Body | None:
        """Where a chunk of so many octets goes; None where it is read only to be refused (RFC 3030 section 2)."""
        if not self._recipients or self.refusal is not None:
            return None
        body = self.open_body()
        if body.size + size > self._options.max_message_size:
            self.refuse(replies.TOO_LARGE)
            return None
        body.announce(body.size + size)
        return body

    def refuse(self, reply: Reply) -> None:
        """Every further chunk gets this reply, up to the last (RFC 3030 section 2)."""
        self.refusal = reply
        self.close()

    def close(self) -> None:
        """Lets go of the data."""
        if self.body is not None:
            self.body.close()


def is_size(text: str) -> bool:
    """Whether it is a number of octets (RFC 1870 section 4, RFC 3030 section 2): at most 20 digits."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _path_behind(keyword: str, argument: str) -> Path | None:
    if argument[: len(keyword)].upper() != keyword:
        return None
    return parse_path(argument[len(keyword) :])


#: Parameters of MAIL whose form is looked at and no more: what their values must be, and the reply where they aren't.
_FORMS: Final[dict[str, tuple[Callable[[str], bool], Reply]]] = {
    "BODY": (lambda value: value.upper() in ("7BIT", "8BITMIME"), replies.BODY_SYNTAX),
    "SMTPUTF8": (lambda value: not value, replies.SMTPUTF8_SYNTAX),
    "RET": (is_return, replies.RET_SYNTAX),
    "ENVID": (is_envelope_id, replies.ENVID_SYNTAX),
}


def _check_parameters(parameters: dict[str, str], options: Options) -> Reply | None:
    for keyword, value in parameters.items():
        if keyword == "SIZE":
            if not is_size(value):
                return replies.SIZE_SYNTAX
            if int(value) > options.max_message_size:
                return replies.TOO_LARGE
        elif keyword in _FORMS:
            is_well_formed, refusal = _FORMS[keyword]
            if not is_well_formed(value):
                return refusal
        elif keyword != "AUTH":
            # AUTH= (RFC 4954 section 5) is for trusted relays, which name the sender: no client is one, it is ignored.
            return replies.UNKNOWN_PARAMETER
    return None
