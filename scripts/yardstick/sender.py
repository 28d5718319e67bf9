"""What a user would otherwise write: the delivery worker's job on boto3, the standard library's email and psycopg2.

There to be measured against (scripts/benchmark), not to be used: one row after the other, no leases, no retries, no
pace, no limits. DATABASE_URL and boto3's own variables say where it works; it goes on until it is ended.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import os
import re
import time
import uuid
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any, Final, TypeAlias

import boto3
import psycopg2
import psycopg2.extras
from botocore.config import Config
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

#: Only the statement says of which types the columns are.
Row: TypeAlias = dict[str, Any]

_IDLE_SECONDS: Final = 0.1
_CONTEXT: Final = b"opensend.tracking.v1"
_SECRET: Final = os.environ["TRACKING_SECRET"].encode()
_BASE: Final = os.environ["TRACKING_BASE_URL"]
_LINK: Final = re.compile(r'(<a\s[^>]*href=")(https?://[^"]*)(")', re.IGNORECASE)

_CLAIM: Final = """
UPDATE emails SET status = 'processing', provider_last_attempted_at = now() WHERE id = (
  SELECT id FROM emails WHERE status = 'queued' AND (provider_next_retry_at IS NULL OR provider_next_retry_at <= now())
   ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING *"""
_DOMAIN: Final = "SELECT * FROM domains WHERE user_id = %s AND lower(name) = %s"
_SUPPRESSED: Final = "SELECT email FROM email_suppressions WHERE user_id = %s AND email = ANY (%s)"
_SENT: Final = "UPDATE emails SET status = 'sent', sent_at = now() WHERE id = %s"
_EVENT: Final = """
INSERT INTO email_events (id, email_id, source_id, type, payload, user_id, received_at)
VALUES (%s, %s, %s, 'sent', %s, %s, now())"""
_WEBHOOKS: Final = """
INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status, created_at)
SELECT gen_random_uuid(), id, %s, 0, 'pending', now() FROM webhooks
 WHERE user_id = %s AND status = 'active' AND event_types @> '["email.sent"]'"""


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def _token(payload: dict[str, object]) -> str:
    iv = os.urandom(12)
    sealed = AESGCM(hashlib.sha256(_SECRET).digest()).encrypt(iv, json.dumps(payload).encode(), _CONTEXT)
    token = _encoded(iv + sealed[-16:] + sealed[:-16])
    return f"{token}.{_encoded(hmac.digest(_SECRET, _CONTEXT + b':' + token.encode(), 'sha256'))}"


def _tracked(row: Row, domain: Row) -> str:
    about = {"v": 1, "userId": row["user_id"], "emailId": row["id"], "domainId": domain["id"]}

    def tracked(match: re.Match[str]) -> str:
        token = _token({**about, "kind": "click", "targetUrl": html.unescape(match[2])})
        return f"{match[1]}{_BASE}/api/track/click/{token}{match[3]}"

    document = _LINK.sub(tracked, row["html"]) if domain["track_clicks"] else str(row["html"])
    if domain["track_opens"]:
        image = f'<img src="{_BASE}/api/track/open/{_token({**about, "kind": "open"})}" width="1" height="1" alt="">'
        document = document.replace("</body>", f"{image}</body>", 1)
    return document


def _composed(row: Row, domain: Row | None) -> bytes:
    message = EmailMessage(policy=SMTP)
    message["From"] = row["from"]
    message["To"] = ", ".join(row["to"])
    if row["cc"]:
        message["Cc"] = ", ".join(row["cc"])
    message["Subject"] = row["subject"]
    message["Date"] = format_datetime(row["created_at"])
    message["X-Entity-ID"] = row["id"]
    for name, value in (row["headers"] or {}).items():
        message[name] = value
    if row["text"] or not row["html"]:
        message.set_content(row["text"] or "\n")
    if row["html"]:
        document = _tracked(row, domain) if domain is not None else row["html"]
        if row["text"]:
            message.add_alternative(document, subtype="html")
        else:
            message.set_content(document, subtype="html")
    for attachment in row["attachments"] or ():
        main, _, sub = (attachment.get("content_type") or "application/octet-stream").partition("/")
        octets = base64.b64decode(attachment["content"])
        message.add_attachment(octets, maintype=main, subtype=sub, filename=attachment["filename"])
    return message.as_bytes()


def main() -> None:
    """Sends what is queued, for ever."""
    connection = psycopg2.connect(os.environ["DATABASE_URL"])
    connection.autocommit = True
    # One try a mail, as the relay's: boto3's own three would be copies.
    config = Config(retries={"total_max_attempts": 1})
    client = boto3.client("sesv2", region_name="us-east-1", config=config)
    cursor = connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
    while True:
        cursor.execute(_CLAIM)
        row = cursor.fetchone()
        if row is None:
            time.sleep(_IDLE_SECONDS)
            continue
        name = row["from"].rpartition("@")[2].rstrip(">").lower()
        cursor.execute(_DOMAIN, (row["user_id"], name))
        domain = cursor.fetchone()
        recipients = [*row["to"], *(row["cc"] or ()), *(row["bcc"] or ())]
        cursor.execute(_SUPPRESSED, (row["user_id"], [address.lower() for address in recipients]))
        if cursor.fetchone() is not None:
            cursor.execute("UPDATE emails SET status = 'suppressed' WHERE id = %s", (row["id"],))
            continue
        answer = client.send_email(
            Destination={"ToAddresses": row["to"], "CcAddresses": row["cc"] or [], "BccAddresses": row["bcc"] or []},
            Content={"Raw": {"Data": _composed(row, domain)}},
            EmailTags=[{"Name": "X-Entity-ID", "Value": row["id"]}],
        )
        event_id = str(uuid.uuid4())
        payload = {"email_id": row["id"], "provider": "ses", "message_id": answer["MessageId"]}
        cursor.execute(_SENT, (row["id"],))
        values = (event_id, row["id"], f"provider-sent:{row['id']}", json.dumps(payload), row["user_id"])
        cursor.execute(_EVENT, values)
        cursor.execute(_WEBHOOKS, (event_id, row["user_id"]))


if __name__ == "__main__":
    main()
