"""What one connection leaves behind in log and metrics: counts, codes and ids, never what was in the mail.

The client's IP address is in the lines that SMTP_RELAY_LOG_CLIENT_ADDRESSES says, in the field `client` alone.
"""

from __future__ import annotations

import time
from typing import Final

import structlog

from relay.core import metrics
from relay.server.logged_address import LoggedAddress
from relay.server.summaries import Summaries
from relay.smtp import replies
from relay.smtp.replies import Reply
from relay.smtp.submission import Verdict

log = structlog.get_logger("relay.smtp")

#: Ids of rows in one line, which a pipe takes whole (4096 octets).
_IDS_A_LINE: Final = 50


class ConnectionLog:
    """The connection_log of one connection: see `relay.smtp.connection.ConnectionLog`."""

    def __init__(self, connection_id: str, origin: bytes, summaries: Summaries, client: LoggedAddress) -> None:
        """`summaries`: for lines that a client of that `origin` can cause without logging in. `client`: its address."""
        # Bound once: to find the logger anew takes as long as to throw a line away.
        self._log = log.bind(connection=connection_id, **client.always)
        self._once = {"connection": connection_id}
        self._origin = origin
        self._summaries = summaries
        self._client = client
        self._began = time.monotonic()

    def opened(self) -> None:
        """A client was accepted."""
        metrics.CONNECTIONS.inc()
        metrics.CONNECTIONS_OPEN.value += 1
        self._log.debug("connection_opened")

    def closed(self) -> None:
        """The socket is closed."""
        metrics.CONNECTIONS_OPEN.value -= 1
        self._log.debug("connection_closed", seconds=round(time.monotonic() - self._began, 3))

    def authenticated(self, reply: Reply) -> None:
        """An AUTH ended."""
        metrics.AUTH.labels(str(reply.code)).inc()
        if reply.positive:
            self._log.debug("authenticated")
            return
        if reply.code == replies.BAD_KEY.code:
            write, event = log.warning, "authentication_failed"
        elif reply.code == replies.AUTH_REFUSED.code:
            write, event = log.warning, "authentication_refused"
        else:
            write, event = log.warning, "authentication_unavailable"
        client = self._client.of_failure()
        self._summaries.write(
            write, event, self._origin, once=self._once, client=client, code=reply.code, enhanced=reply.enhanced
        )

    def message(self, verdict: Verdict) -> None:
        """A message was answered."""
        reply = verdict.reply
        metrics.MESSAGES.labels(verdict.outcome).inc()
        if reply.positive:
            metrics.MESSAGE_BYTES.inc(verdict.size)
            metrics.RECIPIENTS.inc(verdict.recipients)
            write, event = self._log.info, "message_accepted"
        else:
            refused_log = self._log.bind(**self._client.fields_of_failure())
            write, event = refused_log.warning, "message_refused"
        write(
            event,
            email=verdict.email_id or None,
            outcome=verdict.outcome,
            code=reply.code,
            octets=verdict.size,
            recipient_count=verdict.recipients,
        )
        if len(verdict.stored) > 1:
            for first in range(0, len(verdict.stored), _IDS_A_LINE):
                emails = list(verdict.stored[first : first + _IDS_A_LINE])
                self._log.info("several_rows_stored", email=verdict.email_id, emails=emails)

    def error_reply(self, reply: Reply) -> None:
        """A command was refused."""
        metrics.REFUSALS.labels(str(reply.code), reply.enhanced).inc()
        self._log.debug("command_refused", code=reply.code, enhanced=reply.enhanced)

    def failed(self, error: Exception) -> None:
        """A bug, or an error that was not foreseen."""
        self._log.error("unexpected_error", exc_info=error)

    def tls_failed(self, error: OSError) -> None:
        """A TLS handshake did not succeed."""
        metrics.TLS_FAILED.inc()
        reason = type(error).__name__
        client = self._client.of_failure()
        self._summaries.write(
            log.info, "tls_handshake_failed", self._origin, once=self._once, client=client, reason=reason
        )
