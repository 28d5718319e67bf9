"""What one connection leaves behind in log and metrics: counts, codes and ids, never what was in the mail."""

from __future__ import annotations

import time

import structlog

from relay import metrics
from relay.smtp.replies import Reply
from relay.submission import Verdict

log = structlog.get_logger("relay.smtp")


class Journal:
    """The journal of one connection: see `relay.smtp.connection.Journal`."""

    def __init__(self, connection_id: str) -> None:
        self._id = connection_id
        self._began = time.monotonic()

    def opened(self) -> None:
        """A client was accepted."""
        metrics.CONNECTIONS.inc()
        metrics.CONNECTIONS_OPEN.value += 1
        log.debug("connection opened", connection=self._id)

    def closed(self) -> None:
        """The socket is closed."""
        metrics.CONNECTIONS_OPEN.value -= 1
        log.debug("connection closed", connection=self._id, seconds=round(time.monotonic() - self._began, 3))

    def authenticated(self, reply: Reply) -> None:
        """An AUTH ended."""
        metrics.AUTH.labels(str(reply.code)).inc()
        if reply.positive:
            log.debug("authenticated", connection=self._id)
        else:
            log.warning("authentication failed", connection=self._id, code=reply.code, enhanced=reply.enhanced)

    def message(self, verdict: Verdict) -> None:
        """A message was answered."""
        reply = verdict.reply
        metrics.MESSAGES.labels(verdict.outcome).inc()
        if reply.positive:
            metrics.MESSAGE_BYTES.inc(verdict.size)
            metrics.RECIPIENTS.inc(verdict.recipients)
        write = log.info if reply.positive else log.warning
        write(
            "message accepted" if reply.positive else "message refused",
            connection=self._id,
            email=verdict.email_id or None,
            outcome=verdict.outcome,
            code=reply.code,
            octets=verdict.size,
            recipient_count=verdict.recipients,
        )

    def error_reply(self, reply: Reply) -> None:
        """A command was refused."""
        metrics.REFUSALS.labels(str(reply.code), reply.enhanced).inc()
        log.debug("command refused", connection=self._id, code=reply.code, enhanced=reply.enhanced)

    def failed(self, error: Exception) -> None:
        """A bug, or trouble that nobody foresaw."""
        log.error("unexpected error", connection=self._id, exc_info=error)

    def tls_failed(self, error: OSError) -> None:
        """A TLS handshake did not succeed."""
        metrics.TLS_FAILED.inc()
        log.info("tls handshake failed", connection=self._id, reason=type(error).__name__)
