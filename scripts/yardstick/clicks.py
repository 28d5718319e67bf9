"""A plain handler of tracked links, for comparison: Flask and psycopg2, a transaction a click, on gevent's WSGI server.

python clicks.py PORT      (DATABASE_URL, TRACKING_SECRET)
"""

from gevent import monkey

monkey.patch_all()

# Nothing else may be imported before the standard library is patched.

import base64
import hashlib
import hmac
import json
import os
import sys
import uuid

from psycogreen.gevent import patch_psycopg

patch_psycopg()

import psycopg2
import psycopg2.pool
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flask import Flask, Response, abort, redirect, request
from gevent.lock import BoundedSemaphore
from gevent.pywsgi import WSGIServer

CONNECTIONS = 16
SECRET = os.environ["TRACKING_SECRET"].encode()
KEY = hashlib.sha256(SECRET).digest()
app = Flask(__name__)
pool = psycopg2.pool.SimpleConnectionPool(1, CONNECTIONS, os.environ["DATABASE_URL"])
places = BoundedSemaphore(CONNECTIONS)


def decoded(text: str) -> bytes:
    """Base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@app.get("/api/track/click/<token>")
def click(token: str) -> Response:
    """Verifies, looks up, records, redirects."""
    encoded, _, signature = token.partition(".")
    expected = hmac.new(SECRET, b"opensend.tracking.v1:" + encoded.encode(), "sha256").digest()
    if not hmac.compare_digest(decoded(signature), expected):
        abort(404)
    octets = decoded(encoded)
    payload = json.loads(AESGCM(KEY).decrypt(octets[:12], octets[28:] + octets[12:28], b"opensend.tracking.v1"))
    event = {
        "email_id": payload["emailId"],
        "domain_id": payload["domainId"],
        "recipient": payload.get("recipient"),
        "url": payload["targetUrl"],
        "user_agent": request.headers.get("User-Agent"),
        "ip": request.remote_addr,
    }
    with places:
        connection = pool.getconn()
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT 1 FROM emails e, domains d WHERE e.id = %s AND e.user_id = %s AND d.id = %s"
                    " AND d.user_id = %s AND d.track_clicks",
                    (payload["emailId"], payload["userId"], payload["domainId"], payload["userId"]),
                )
                if cursor.fetchone():
                    event_id = str(uuid.uuid4())
                    cursor.execute(
                        "INSERT INTO email_events (id, email_id, type, payload, user_id)"
                        " VALUES (%s, %s, 'email.clicked', %s, %s)",
                        (event_id, payload["emailId"], json.dumps(event), payload["userId"]),
                    )
                    cursor.execute(
                        "INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status)"
                        " SELECT gen_random_uuid(), id, %s, 0, 'pending' FROM webhooks WHERE user_id = %s"
                        " AND status = 'active' AND event_types @> '[\"email.clicked\"]'",
                        (event_id, payload["userId"]),
                    )
        finally:
            pool.putconn(connection)
    return redirect(payload["targetUrl"])  # type: ignore[return-value]


if __name__ == "__main__":
    server = WSGIServer(("127.0.0.1", int(sys.argv[1])), app, log=None)
    print("ready", flush=True)
    server.serve_forever()
