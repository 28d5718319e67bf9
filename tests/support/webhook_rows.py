"""Rows of webhooks, events and deliveries for tests, and secrets as OpenSend stores them."""

from __future__ import annotations

import base64
import json
import os
import uuid
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.delivery.webhook_secrets import key_of
from scripts.database import create_webhook, execute

#: WEBHOOK_SECRET_ENCRYPTION_KEY.
MATERIAL = "5d" * 32
SECRET = "whsec_c2VjcmV0IG9mIGEgd2ViaG9vaw=="


def encrypted(secret: str, material: str = MATERIAL) -> str:
    """`v1.<iv>.<ciphertext>.<tag>`."""
    iv = os.urandom(12)
    sealed = AESGCM(key_of(material)).encrypt(iv, secret.encode(), None)
    parts = [base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (iv, sealed[:-16], sealed[-16:])]
    return ".".join(["v1", *parts])


def add_webhook(url: str, target: str, *, user: str = "user", status: str = "active", secret: str = SECRET) -> str:
    """A webhook; its id. `url`: of the database."""
    return create_webhook(
        url, "email.sent", url=target, user_id=user, status=status, signing_secret_enc=encrypted(secret)
    )


def add_event(url: str, *, kind: str = "sent", payload: Any = None, user: str = "user") -> str:
    """An event; its id."""
    event_id = str(uuid.uuid4())
    execute(
        url,
        "INSERT INTO email_events (id, type, payload, user_id) VALUES (%s, %s, %s, %s)",
        (event_id, kind, json.dumps({"n": 1} if payload is None else payload), user),
    )
    return event_id


def add_delivery(url: str, webhook_id: str, event_id: str, **columns: Any) -> str:
    """A pending delivery; its id."""
    row = {"id": str(uuid.uuid4()), "webhook_id": webhook_id, "event_id": event_id, "status": "pending", "attempt": 0}
    row |= columns
    places = ", ".join(["%s"] * len(row))
    statement = f"INSERT INTO webhook_deliveries ({', '.join(row)}) VALUES ({places})"
    execute(url, statement, tuple(row.values()))
    return str(row["id"])
