"""The smart host that mails are handed to: where it is, how it is reached, and the credentials for it.

TLS is wanted unless the settings say otherwise, and the certificate is always verified: a host that does not offer
STARTTLS, or presents another certificate, gets neither password nor mail.
"""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from typing import Final, Literal

import gevent

from config.settings import Settings
from relay.core.tls_client import client_context
from relay.delivery.smtp_client import NOT_PRINTABLE, ConnectionBroken, Reply, SmtpConnection, word_of

#: Ports of submission (RFC 6409), of submission over TLS (RFC 8314), and of SMTP.
_PORTS: Final = {"starttls": 587, "implicit": 465, "none": 25}
#: Replies that ask for authentication, or refuse it, to whatever command they come (RFC 4954 section 6).
AUTH_CODES: Final = frozenset((530, 534, 535, 538))


class NotOpened(Exception):
    """No mail can be handed over now. `kind`: one of `relay.delivery.outcome.KINDS`; `code`: digits, or a word."""

    def __init__(self, kind: Literal["unreachable", "tls", "credentials", "server_error"], code: str) -> None:
        super().__init__(code)
        self.kind = kind
        self.code = code


class SmartHost:
    """Opens connections. No class of data: nothing shows the password by accident."""

    def __init__(self, settings: Settings) -> None:
        """Raises OSError where `SMTP_RELAY_SMARTHOST_CA_PATH` can't be read."""
        self.host = settings.smarthost_host or ""
        self.tls = settings.smarthost_tls
        self.port = settings.smarthost_port or _PORTS[self.tls]
        self._user, self._password = settings.smarthost_user, settings.smarthost_password
        self._hostname = settings.hostname
        self._context = client_context(settings.smarthost_ca_path)

    def open(self, until: float) -> SmtpConnection:
        """A connection that takes mails. `until`: a moment of time.monotonic(). Raises NotOpened."""
        # A BaseException, so that nothing on the way takes it for an error that it knows. It is for the resolver,
        # which has no time limit.
        with gevent.Timeout(max(0.0, until - time.monotonic())) as limit:
            try:
                return self._open(until)
            except gevent.Timeout as late:
                if late is not limit:
                    raise
                raise NotOpened("unreachable", "TimeoutError") from None

    def may_show(self, text: str) -> bool:
        """Whether a text of the host's repeats no secret of ours."""
        # As a reply shows what is not printable ASCII.
        shown = NOT_PRINTABLE.sub("?", (self._password or "").encode("utf-8").decode("latin-1"))
        secrets = [shown, *map(_base64, (self._password or "", _plain(self._user, self._password)))]
        return not any(secret and secret in text for secret in secrets)

    def _open(self, until: float) -> SmtpConnection:
        try:
            sock = socket.create_connection((self.host, self.port), timeout=max(0.001, until - time.monotonic()))
        except (OSError, UnicodeError) as error:  # UnicodeError: a name with a label that is too long
            raise NotOpened("unreachable", word_of(error)) from None
        connection = SmtpConnection(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._greeted(connection, until)
        except ConnectionBroken as broken:
            connection.close()
            raise NotOpened("unreachable", broken.code) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _greeted(self, connection: SmtpConnection, until: float) -> None:
        if self.tls == "implicit":
            self._secured(connection, until)
        _expect(2, connection.reply(until))
        _expect(2, connection.greet(self._hostname, until))
        if self.tls == "starttls":
            if "STARTTLS" not in connection.extensions:
                raise NotOpened("tls", "NoStartTls")
            _expect(2, connection.ask("STARTTLS", until), "tls")
            self._secured(connection, until)
            # What was offered in the clear may have been changed on the way (RFC 3207 section 4.2).
            _expect(2, connection.greet(self._hostname, until))
        if self._password is not None:
            self._authenticated(connection, until)

    def _secured(self, connection: SmtpConnection, until: float) -> None:
        try:
            connection.secure(self._context, self.host, until)
        except ConnectionBroken as broken:
            raise NotOpened("tls", broken.code) from None

    def _authenticated(self, connection: SmtpConnection, until: float) -> None:
        """AUTH (RFC 4954) by PLAIN, or by LOGIN where that alone is offered."""
        mechanisms = connection.extensions.get("AUTH", "").upper().split()
        if "PLAIN" in mechanisms:
            reply = connection.ask(f"AUTH PLAIN {_base64(_plain(self._user, self._password))}", until)
        elif "LOGIN" in mechanisms:
            reply = connection.ask("AUTH LOGIN", until)
            for answer in (self._user or "", self._password or ""):
                if reply.kind != 3:
                    break
                reply = connection.ask(_base64(answer), until)
        else:
            raise NotOpened("credentials", "NoAuth")
        _expect(2, reply, "credentials")


def _expect(kind: int, reply: Reply, refused: Literal["unreachable", "tls", "credentials"] = "unreachable") -> None:
    if reply.kind == kind:
        return
    if reply.code in AUTH_CODES:
        raise NotOpened("credentials", reply.codes)
    # 4xx is a temporary failure of the host, to whatever command (RFC 4954 section 6: 454).
    raise NotOpened("server_error" if reply.kind == 4 else refused, reply.codes)


def _plain(user: str | None, password: str | None) -> str:
    return f"\0{user or ''}\0{password or ''}"


def _base64(text: str) -> str:
    return b64encode(text.encode("utf-8")).decode("ascii")
