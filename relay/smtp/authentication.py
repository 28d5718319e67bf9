"""AUTH on one connection (RFC 4954): the exchange in progress, and the API key that the connection belongs to after
it."""

from __future__ import annotations

from typing import Final

from config.settings import RecipientRule
from relay.core.outcomes import LoginFailure
from relay.smtp import replies
from relay.smtp.options import Options
from relay.smtp.replies import Reply
from relay.smtp.sasl import MECHANISMS, Challenge, Credentials, Exchange, Failure, Outcome
from relay.smtp.submission import Limits, Login, Services

#: The user name for which the envelope alone names the recipients, on this connection.
ENVELOPE_USERNAME = "envelope"

_REPLIES: Final = {
    LoginFailure.WRONG_KEY: replies.BAD_KEY,
    LoginFailure.UNAVAILABLE: replies.AUTH_UNAVAILABLE,
    LoginFailure.TOO_MANY_FAILURES: replies.AUTH_REFUSED,
}


class Authentication:
    """One client's."""

    __slots__ = ("_exchange", "_failures", "_limits", "_options", "_services", "login", "result", "rule", "trouble")

    def __init__(self, options: Options, services: Services, limits: Limits) -> None:
        self._options = options
        self._services = services
        self._limits = limits
        self._exchange: Exchange | None = None
        self._failures = 0
        #: The API key of the client; None before it has authenticated.
        self.login: Login | None = None
        #: How the recipients of its messages are found.
        self.rule = options.recipient_rule
        #: The last AUTH failed for reasons of ours.
        self.trouble = False
        #: The reply to the password of the last AUTH; None where it came to no password.
        self.result: Reply | None = None

    @property
    def in_progress(self) -> bool:
        """Whether the client's next line is a response to a challenge."""
        return self._exchange is not None

    def begin(self, argument: str) -> Reply:
        """Carries out AUTH with this argument: a challenge, or what it came to."""
        mechanism, _, response = argument.partition(" ")
        kind = MECHANISMS.get(mechanism.upper())
        if kind is None:
            return replies.AUTH_MECHANISM
        self._exchange = exchange = kind()
        response = response.strip(" \t")
        return self._advance(exchange.begin(response.encode("utf-8", "surrogateescape") if response else None))

    def respond(self, line: bytes) -> Reply:
        """Goes on with a response to the last challenge. Only while `in_progress`."""
        if self._exchange is None:
            raise AssertionError("a response without a challenge")
        return self._advance(self._exchange.respond(line))

    def abandon(self) -> bool:
        """Ends the exchange without a result; whether there was one in progress."""
        in_progress, self._exchange = self._exchange is not None, None
        return in_progress

    def forget(self) -> None:
        """As if the client had never tried to authenticate (RFC 3207 section 4.2). Failures count on."""
        self._exchange = None
        self.login = None
        self.rule = self._options.recipient_rule
        self.trouble = False

    def _advance(self, outcome: Outcome) -> Reply:
        self.result = None
        if isinstance(outcome, Challenge):
            return replies.challenge(outcome.text)
        self._exchange = None
        if outcome is Failure.CANCELLED:
            return replies.AUTH_CANCELLED
        if not isinstance(outcome, Credentials):
            return replies.AUTH_MALFORMED
        self.result = self._conclude(outcome)
        return self.result

    def _conclude(self, credentials: Credentials) -> Reply:
        self.trouble = True  # until it is known to be otherwise: what is raised here is a failure of the relay as well
        login = self._limits.authenticate(credentials.password, self._services.authenticate)
        if isinstance(login, LoginFailure):
            reply = _REPLIES[login]
            self.trouble = reply.temporary
            if not reply.temporary:
                self._failures += 1
            return reply.closing() if self._failures >= self._options.max_auth_failures else reply
        self.trouble = False
        self.login = login
        if credentials.username.strip().lower() == ENVELOPE_USERNAME:
            self.rule = RecipientRule.ENVELOPE
        return replies.AUTHENTICATED
