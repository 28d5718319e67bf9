"""A relay to be tried with mail clients, and what there is to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras

from scripts.certificate import ensure_certificate
from scripts.database import NewApiKey, execute
from scripts.services import free_port
from tests.clients.mail import Account, Security
from tests.support.relay_process import Relay


@dataclass(frozen=True, slots=True)
class Door:
    """One relay. `tls_port` is 0 and `authority` of no meaning where it has no certificate."""

    relay: Relay
    database_url: str
    key: NewApiKey
    tls_port: int
    #: PEM file with the certificate that clients are told to trust.
    authority: str

    def account(self, security: Security, *, username: str = "opensend", password: str = "") -> Account:
        """The settings of a client that is to send mail through this door."""
        port = self.tls_port if security == "tls" else self.relay.port
        return Account(port, security, password or self.key.token, self.authority, username)

    def rows(self, mark: str) -> list[dict[str, Any]]:
        """The rows whose subject contains the mark."""
        connection = psycopg2.connect(self.database_url)
        try:
            with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                cursor.execute("SELECT * FROM emails WHERE subject LIKE %s ORDER BY created_at", (f"%{mark}%",))
                return [dict(row) for row in cursor.fetchall()]
        finally:
            connection.close()

    def suppress(self, address: str) -> None:
        """Puts an address on the suppression list of the key's user."""
        execute(
            self.database_url,
            "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, %s, 'bounced', now(), now())",
            (self.key.user_id, address),
        )


def door(directory: Path, database_url: str, redis_url: str, key: NewApiKey, *, secured: bool) -> Door:
    """A door whose relay has not been started: in the clear, or with a certificate and with a port for TLS at once."""
    certificate, private_key = ensure_certificate(directory / "tls")
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SMTP_RELAY_HOSTNAME": "relay.example"}
    tls_port = 0
    if secured:
        tls_port = free_port()
        settings |= {
            "SMTP_RELAY_TLS_CERT_PATH": str(certificate),
            "SMTP_RELAY_TLS_KEY_PATH": str(private_key),
            "SMTP_RELAY_TLS_PORT": str(tls_port),
        }
    return Door(Relay(directory / "relay", settings), database_url, key, tls_port, str(certificate))
