"""Webhook deliveries by a worker process to an HTTPS server: what arrives, what is recorded, and who waits for whom."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from relay.delivery.webhook_attempts import JITTER, RETRY_SECONDS
from scripts.database import create_database, drop_database, execute, query
from scripts.services import Postgres, WebhookSink, WebhookWorker
from tests.support.webhook_rows import MATERIAL, SECRET, add_delivery, add_event, add_webhook


class Stage:
    """A database, a sink, and a worker that serves both."""

    def __init__(self, url: str, sink: WebhookSink, worker: WebhookWorker) -> None:
        self.url = url
        self.sink = sink
        self.worker = worker

    def webhook(self, path: str, **columns: Any) -> str:
        return add_webhook(self.url, self.sink.url(path), **columns)

    def deliver(self, webhook_id: str, *, kind: str = "sent", payload: Any = None, **columns: Any) -> str:
        return add_delivery(self.url, webhook_id, add_event(self.url, kind=kind, payload=payload), **columns)

    def row(self, delivery_id: str) -> dict[str, Any]:
        names = ("status", "attempt", "status_code", "response_body", "attempted_at", "next_retry_at")
        (row,) = query(self.url, f"SELECT {', '.join(names)} FROM webhook_deliveries WHERE id = '{delivery_id}'")
        return dict(zip(names, row, strict=True))

    def attempted(self, delivery_id: str, attempt: int = 1) -> dict[str, Any]:
        """The row once so many attempts were recorded."""
        until(lambda: self.row(delivery_id)["attempt"] == attempt)
        return self.row(delivery_id)

    def ended(self, delivery_id: str) -> dict[str, Any]:
        """The row once it is no more pending."""
        until(lambda: self.row(delivery_id)["status"] != "pending")
        return self.row(delivery_id)

    def ids(self, path: str) -> list[str]:
        return [hook.id for hook in self.sink.taken() if hook.path == path]


@pytest.fixture(scope="module")
def stage(postgres_server: Postgres, schema_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    name = f"webhooks_{uuid.uuid4().hex}"
    url = create_database(postgres_server.url(), name, schema_template)
    # OpenSend deletes webhooks and events.
    execute(url, "ALTER TABLE webhook_deliveries DROP CONSTRAINT webhook_deliveries_webhook_id_fkey")
    execute(url, "ALTER TABLE webhook_deliveries DROP CONSTRAINT webhook_deliveries_event_id_fkey")
    directory = tmp_path_factory.mktemp("webhooks")
    settings = {
        "DATABASE_URL": url,
        "WEBHOOK_SECRET_ENCRYPTION_KEY": MATERIAL,
        "SMTP_RELAY_PROVIDER": "maildir",
        "SMTP_RELAY_MAILDIR": str(directory / "mails"),
    }
    with WebhookSink(directory / "sink") as sink, WebhookWorker(directory / "worker", sink, settings) as worker:
        yield Stage(url, sink, worker)
        log = worker.log_path.read_text()
    assert "Traceback" not in log
    assert "example.com" not in log
    drop_database(postgres_server.url(), name)


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_an_event_arrives_signed_and_is_recorded(stage: Stage) -> None:
    payload = {"text": "Grüße\u2028\u0001", "large": 12345678901234567890123, "nested": [{"a": None}], "n": 1.50}
    delivery = stage.deliver(stage.webhook("/ok?a=b"), payload=payload)
    row = stage.ended(delivery)
    assert {name: row[name] for name in ("status", "attempt", "status_code", "response_body", "next_retry_at")} == {
        "status": "success",
        "attempt": 1,
        "status_code": 200,
        "response_body": "ok",
        "next_retry_at": None,
    }
    (hook,) = [hook for hook in stage.sink.taken() if hook.path == "/ok?a=b"]
    assert (hook.server_name, hook.fields["host"]) == ("hooks.example.com", f"hooks.example.com:{stage.sink.port}")
    document = json.loads(hook.body)
    assert list(document) == ["id", "type", "created_at", "data"]
    assert (document["id"], document["type"], document["data"]) == (f"whd_{delivery}_1", "email.sent", payload)
    assert hook.id == document["id"]
    assert document["created_at"][:19] == row["attempted_at"].strftime("%Y-%m-%dT%H:%M:%S")
    assert abs(int(hook.fields["svix-timestamp"]) - row["attempted_at"].timestamp()) <= 1
    signed = f"{hook.id}.{hook.fields['svix-timestamp']}.{hook.body}".encode()
    digest = hmac.digest(SECRET.removeprefix("whsec_").encode(), signed, hashlib.sha256)
    assert hook.fields["svix-signature"] == "v1," + base64.b64encode(digest).decode()
    assert hook.fields["content-type"] == "application/json"


def test_svix_own_verifier_accepts_it(stage: Stage) -> None:
    svix = pytest.importorskip("svix.webhooks")
    stage.ended(stage.deliver(stage.webhook("/ok?svix"), payload={"a": "ä"}))
    (hook,) = [hook for hook in stage.sink.taken() if hook.path == "/ok?svix"]
    verifier = svix.Webhook(SECRET.removeprefix("whsec_").encode())
    verifier.verify(hook.body, hook.fields)
    with pytest.raises(svix.WebhookVerificationError):
        verifier.verify(hook.body.replace("ä", "a"), hook.fields)


#: Path → status of the delivery, status code, and how the stored text begins.
ANSWERS = {
    "/status/204": ("success", 204, ""),  # no content follows that status
    "/early": ("success", 204, ""),
    "/endless": ("success", 200, "x" * 1000 + "…"),
    "/large": ("success", 200, "ä" * 1000 + "…"),
    "/redirect": ("pending", 302, ""),
    "/status/404": ("pending", 404, "answer"),
    "/status/500": ("pending", 500, "answer"),
    "/close": ("pending", None, "ConnectionResetError"),
    "/short": ("pending", None, "ConnectionResetError"),
    "/hang": ("pending", None, "TimeoutError: no whole answer within 5 s"),
    "/drip": ("pending", None, "TimeoutError: no whole answer within 5 s"),
    "/continue": ("pending", None, "ConnectionAbortedError: header fields without end"),
    "/field": ("pending", None, "ConnectionAbortedError: header fields without end"),
}


def test_what_each_answer_means(stage: Stage) -> None:
    """All at the same time: the worst of them holds up none of the others."""
    deliveries = {path: stage.deliver(stage.webhook(path)) for path in ANSWERS}
    for path, (status, code, text) in ANSWERS.items():
        row = stage.attempted(deliveries[path])
        assert (row["status"], row["status_code"]) == (status, code), path
        assert row["response_body"].startswith(text), path
        assert len(row["response_body"]) <= 1001
        assert (row["next_retry_at"] is None) == (status == "success")
    assert stage.ids("/redirect") != []
    assert not [hook for hook in stage.sink.taken() if hook.path == "/ok" and hook.fields.get("referer")]


def test_retries_follow_the_table_and_end_as_dead_letters(stage: Stage) -> None:
    webhook = stage.webhook("/status/503")
    before = "2020-01-01T00:00:00Z"
    deliveries = [stage.deliver(webhook, attempt=n, next_retry_at=before) for n in range(8)]
    for number, seconds in enumerate(RETRY_SECONDS):
        row = stage.attempted(deliveries[number], number + 1)
        assert (row["status"], row["status_code"]) == ("pending", 503)
        later = (row["next_retry_at"] - row["attempted_at"]).total_seconds()
        assert seconds <= later <= seconds * (1 + JITTER) + 60.0
    row = stage.attempted(deliveries[7], 8)
    assert (row["status"], row["next_retry_at"], row["response_body"]) == ("dead_letter", None, "answer")
    assert set(stage.ids("/status/503")) >= {f"whd_{delivery}_{n + 1}" for n, delivery in enumerate(deliveries)}


def test_what_is_final_at_once(stage: Stage) -> None:
    gone = str(uuid.uuid4())
    webhook = stage.webhook("/ok?final")
    port = stage.sink.port
    deliveries = {
        "Webhook not found": stage.deliver(gone),
        "Webhook is disabled": stage.deliver(stage.webhook("/ok?final", status="disabled")),
        "Webhook event not found": add_delivery(stage.url, webhook, gone),
        "Unsupported webhook event type: unheard_of": stage.deliver(webhook, kind="unheard_of"),
        "The event is larger": stage.deliver(webhook, payload={"a": "x" * 1_100_000}),
        "Refused unsafe webhook URL: user": stage.deliver(
            add_webhook(stage.url, f"https://user@hooks.example.com:{port}/ok?final")
        ),
        "Refused unsafe webhook URL: a private name": stage.deliver(add_webhook(stage.url, "https://db.internal/")),
        "Refused unsafe webhook URL: neither": stage.deliver(add_webhook(stage.url, "ftp://hooks.example.com/")),
    }
    for reason, delivery in deliveries.items():
        row = stage.ended(delivery)
        assert (row["status"], row["attempt"], row["status_code"], row["next_retry_at"]) == ("failed", 0, None, None)
        assert row["response_body"].startswith(reason)
    assert stage.ids("/ok?final") == []


def test_types_with_a_dot_and_large_payloads(stage: Stage) -> None:
    webhook = stage.webhook("/ok?types")
    large = {"a": "ä" * 100_000}
    kinds = {"email.opened": "email.opened", "contact.created": "contact.created", "bounced": "email.bounced"}
    deliveries = {stage.deliver(webhook, kind=kind, payload=large): wanted for kind, wanted in kinds.items()}
    for delivery in deliveries:
        assert stage.ended(delivery)["status"] == "success"
    found = {hook.id: json.loads(hook.body) for hook in stage.sink.taken() if hook.path == "/ok?types"}
    assert {key: value["type"] for key, value in found.items()} == {
        f"whd_{delivery}_1": kind for delivery, kind in deliveries.items()
    }
    assert all(value["data"] == large for value in found.values())


def test_a_secret_that_cannot_be_read_uses_up_no_attempt(stage: Stage) -> None:
    """Nothing leaves without the right signature, and nothing is lost: the key of the settings may be mended."""
    webhook = stage.webhook("/ok?unreadable")
    execute(stage.url, "UPDATE webhooks SET signing_secret_enc = 'v1.AAAA.AAAA.AAAA' WHERE id = %s", (webhook,))
    delivery = stage.deliver(webhook)
    until(lambda: stage.row(delivery)["response_body"] is not None)
    row = stage.row(delivery)
    assert (row["status"], row["attempt"]) == ("pending", 0)
    assert row["next_retry_at"].timestamp() > time.time() + 100
    assert stage.ids("/ok?unreadable") == []


def test_a_dead_endpoint_holds_up_only_itself(stage: Stage) -> None:
    dead, well = stage.webhook("/hang?dead"), stage.webhook("/ok?well", user="other")
    event = add_event(stage.url)
    execute(
        stage.url,
        "INSERT INTO webhook_deliveries (id, webhook_id, event_id, attempt, status, created_at)"
        " SELECT gen_random_uuid(), %s, %s, 0, 'pending', now() - interval '1 hour' FROM generate_series(1, 3000)",
        (dead, event),
    )
    until(lambda: stage.ids("/hang?dead") != [])
    deliveries = [stage.deliver(well) for _ in range(50)]
    for delivery in deliveries:
        assert stage.ended(delivery)["status"] == "success"
    # Those of the dead one wait in Postgres, as they were.
    left = "attempt = 0 AND next_retry_at IS NULL AND webhook_id = %s"
    ((waiting,),) = query(stage.url, f"SELECT count(*) FROM webhook_deliveries WHERE {left}".replace("%s", f"'{dead}'"))
    assert waiting > 2900
    execute(stage.url, "UPDATE webhook_deliveries SET status = 'failed' WHERE webhook_id = %s", (dead,))


def test_killed_at_any_moment_each_is_delivered_with_one_id(stage: Stage) -> None:
    """The ledger: every delivery arrived, as its first attempt, however often the worker died in the middle of it."""
    webhooks = [stage.webhook("/ms/200?killed", user=f"user {number}") for number in range(4)]
    deliveries = [stage.deliver(webhook) for webhook in webhooks for _ in range(25)]
    for wanted in (5, 30):
        until(lambda wanted=wanted: len(set(stage.ids("/ms/200?killed"))) >= wanted)  # type: ignore[misc]
        stage.worker.kill()
        # The leases of the dead are over.
        execute(
            stage.url, "UPDATE webhook_deliveries SET next_retry_at = NULL WHERE status = 'pending' AND attempt = 0"
        )
        stage.worker.start()
    for delivery in deliveries:
        row = stage.ended(delivery)
        assert (row["status"], row["attempt"]) == ("success", 1)
    assert set(stage.ids("/ms/200?killed")) == {f"whd_{delivery}_1" for delivery in deliveries}


@pytest.mark.parametrize("trouble", ["a lock", "a trigger"])
def test_a_result_that_cannot_be_recorded_holds_up_no_other(stage: Stage, trouble: str) -> None:
    bad = stage.deliver(stage.webhook(f"/hang?{trouble[2:]}"))
    # Claimed: a call takes five seconds.
    until(lambda: stage.row(bad)["next_retry_at"] is not None)
    with psycopg2.connect(stage.url) as holder, holder.cursor() as cursor:
        if trouble == "a lock":
            cursor.execute("SELECT FROM webhook_deliveries WHERE id = %s FOR UPDATE", (bad,))
        else:
            cursor.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
                "CREATE TRIGGER refuse BEFORE UPDATE ON webhook_deliveries FOR EACH ROW"
                f" WHEN (NEW.id = '{bad}' AND NEW.attempt > OLD.attempt) EXECUTE FUNCTION refuse()"
            )
            holder.commit()
        time.sleep(6.0)
        others = [
            stage.deliver(stage.webhook(f"/ok?beside {trouble}{number}".replace(" ", "-"))) for number in range(5)
        ]
        for other in others:
            until(lambda other=other: stage.row(other)["status"] == "success", seconds=20.0)  # type: ignore[misc]
        assert stage.row(bad)["attempt"] == 0
        if trouble == "a trigger":
            cursor.execute("DROP FUNCTION refuse CASCADE")
    assert stage.attempted(bad)["status"] == "pending"
