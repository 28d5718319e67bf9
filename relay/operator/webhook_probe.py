"""Whether the delivery worker can sign webhooks: some stored secrets are opened, and nothing of them is said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from config.settings import Settings
from relay.core.errors import PostgresUnavailable, Unstorable
from relay.delivery.webhook_secrets import UnreadableSecretError, WebhookSecrets
from relay.operator.events_probe import SECRET_LENGTH
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.operator.postgres_probe import RolledBack
from relay.postgres.driver import Cursor

_PART: Final = "webhooks"
#: Secrets that are looked at, of webhooks that are active.
_MOST: Final = 20
_SECRETS: Final = """
SELECT signing_secret_enc FROM webhooks WHERE status = 'active' AND signing_secret_enc LIKE 'v1.%%' LIMIT %s"""


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """One line, or two. `seconds`: by then the answer has to be there."""
    if not settings.webhooks:
        yield Finding(OK, _PART, "SMTP_RELAY_WEBHOOKS is false: they are left to OpenSend")
        return
    key = settings.webhook_secret_encryption_key
    if key is not None and len(key) < SECRET_LENGTH:
        yield Finding(
            WARN,
            _PART,
            f"WEBHOOK_SECRET_ENCRYPTION_KEY is shorter than {SECRET_LENGTH} characters: OpenSend refuses it",
        )
    database = RolledBack(settings.database_url, statement_seconds=seconds)
    try:
        stored = database.use(time.monotonic() + seconds, _stored)
    except (PostgresUnavailable, Unstorable):
        yield Finding(WARN, _PART, "Postgres can't be asked for signing secrets")
        return
    finally:
        database.close()
    yield _finding(key, stored)


def _stored(cursor: Cursor) -> list[str]:
    cursor.execute(_SECRETS, (_MOST,))
    return [secret for (secret,) in cursor.fetchall()]


def _finding(key: str | None, stored: list[str]) -> Finding:
    if not stored:
        return Finding(OK, _PART, "no active webhook has a signing secret")
    if key is None:
        return Finding(
            FAIL, _PART, "WEBHOOK_SECRET_ENCRYPTION_KEY is not set: webhooks with a signing secret are not called"
        )
    secrets = WebhookSecrets(key)
    unreadable = sum(not _opens(secrets, secret) for secret in stored)
    if unreadable == len(stored):
        return Finding(FAIL, _PART, "WEBHOOK_SECRET_ENCRYPTION_KEY opens no signing secret: webhooks are not called")
    if unreadable:
        text = f"WEBHOOK_SECRET_ENCRYPTION_KEY does not open {unreadable} of {len(stored)} signing secrets"
        return Finding(WARN, _PART, text)
    return Finding(OK, _PART, "WEBHOOK_SECRET_ENCRYPTION_KEY opens the signing secrets")


def _opens(secrets: WebhookSecrets, stored: str) -> bool:
    try:
        secrets.open(stored)
    except UnreadableSecretError:
        return False
    return True
