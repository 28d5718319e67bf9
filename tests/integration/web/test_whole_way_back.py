"""A mail by SMTP, out through the double of SES, and all that comes back, compared with the contract field by field.

Every part is a separate process; the double of SES tells by itself what becomes of each mail, signed as SNS does. The
webhooks go to an HTTPS server whose authority the delivery worker of this test trusts.
"""

from __future__ import annotations

import base64
import email.message
import email.policy
import hashlib
import hmac
import importlib
import importlib.util
import json
import re
import smtplib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scripts.database import NewApiKey
from scripts.services import Hook, Relay, Ses, Web, WebhookSink, WebhookWorker, free_port, start_together
from scripts.services.sns_double import TOPIC
from tests.integration.web.conftest import SECRET, Stage, settings_of
from tests.support.service_process import eventually
from tests.support.webhook_rows import MATERIAL, encrypted
from tests.support.webhook_rows import SECRET as WEBHOOK_SECRET

TARGET = "https://target.example/?a=1&b=2"
TEXT, HTML = "text\n", '<a href="https://target.example/?a=1&amp;b=2">go</a>\n'
#: Local part at Amazon's mailbox simulator → status in the end, and the types of the events that SES tells.
WAYS = {
    "success": ("delivered", ["delivered", "sent"]),
    "bounce": ("bounced", ["bounced", "sent"]),
    "complaint": ("complained", ["complained", "delivered", "sent"]),
    "suppressionlist": ("bounced", ["bounced", "sent"]),
    "ooto": ("bounced", ["bounced", "delivered", "sent"]),
}
#: Those that get no more mail, and why.
SUPPRESSED = {"bounce": "bounced", "complaint": "complained", "suppressionlist": "bounced"}
WANTED = ("email.sent", "email.delivered", "email.bounced", "email.opened", "email.clicked", "email.suppressed")
BROWSER = "Mozilla/5.0 (test)"


def address(name: str) -> str:
    return f"{name}@simulator.amazonses.com"


def payload_of(kind: str, name: str) -> dict[str, Any]:
    """What SES says of an event, without its time."""
    if kind == "sent":
        return {}
    if kind == "delivered":
        return {"recipients": [address(name)], "smtpResponse": "250 ok"}
    if kind == "complained":
        return {"complainedRecipients": [{"emailAddress": address(name)}]}
    return {
        "bounceType": "Transient" if name == "ooto" else "Permanent",
        "bounceSubType": "Suppressed" if name == "suppressionlist" else "General",
        "bouncedRecipients": [{"emailAddress": address(name), "status": "5.1.1"}],
    }


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


class Whole(NamedTuple):
    """All parts, and what was put into the database before the first mail."""

    stage: Stage
    ses: Ses
    sink: WebhookSink
    user_id: str
    domain_id: str
    #: Wants WANTED; the second one wants all the rest.
    webhook_ids: tuple[str, str]


def test_a_mail_goes_out_and_what_becomes_of_it_comes_back(
    postgres_url: str, redis_url: str, make_api_key: Callable[..., NewApiKey], tmp_path: Path
) -> None:
    key = make_api_key()
    common = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url}
    web_port = free_port()
    with Ses(tmp_path / "ses") as ses, WebhookSink(tmp_path / "sink") as sink:
        sns = ses.notify(f"http://127.0.0.1:{web_port}/events/ses")
        web = Web(tmp_path / "web", settings_of(postgres_url, redis_url), web_port, sns=sns)
        relay = Relay(tmp_path / "relay", common)
        settings = {
            **common,
            **ses.client_environment,
            "TRACKING_SECRET": SECRET,
            "TRACKING_BASE_URL": web.url,
            "SES_EVENTS_SNS_TOPIC_ARN": TOPIC,
            "WEBHOOK_SECRET_ENCRYPTION_KEY": MATERIAL,
        }
        worker = WebhookWorker(tmp_path / "worker", sink, settings)
        start_together(web, relay, worker)
        try:
            stage = Stage(web, postgres_url, None)  # type: ignore[arg-type]  # the double signs by itself
            whole = _prepared(stage, ses, sink, key.user_id)
            with smtplib.SMTP(relay.host, relay.port, "localhost", timeout=60) as client:
                client.login("opensend", key.token)
                for name in WAYS:
                    client.send_message(_mail(address(name)))
                eventually("all statuses", lambda: _statuses(stage) == {n: status for n, (status, _) in WAYS.items()})
                _links_lead_there(whole)
                # An address that bounced or complained gets no more mail; the cache has not grown old meanwhile.
                for name in SUPPRESSED:
                    with pytest.raises(smtplib.SMTPDataError, match="suppressed") as refused:
                        client.send_message(_mail(address(name)))
                    assert refused.value.smtp_code == 550
                _check_rows(whole)
                _check_events(whole)
                _check_suppressions(whole)
                _check_webhooks(whole)
                for name in WAYS.keys() - SUPPRESSED.keys():
                    client.send_message(_mail(address(name)))
        finally:
            for server in (relay, worker, web):
                server.stop()
        for server in (relay, worker, web):
            log = server.log_path.read_text()
            assert "Traceback" not in log, server.name
            assert "simulator.amazonses.com" not in log, server.name


def _mail(to: str) -> email.message.EmailMessage:
    made = email.message.EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ann <ann@example.com>", to, f"To {to}"
    made.set_content(TEXT)
    made.add_alternative(HTML, subtype="html")
    return made


def _prepared(stage: Stage, ses: Ses, sink: WebhookSink, user_id: str) -> Whole:
    domain_id = stage.add_domain(user_id=user_id, ses_configuration_set_name="opensend")
    secret = encrypted(WEBHOOK_SECRET)
    columns = {"user_id": user_id, "signing_secret_enc": secret}
    webhooks = (
        stage.add_webhook(*WANTED, url=sink.url("/ok?wanted"), **columns),
        stage.add_webhook("email.complained", "email.failed", "sent", url=sink.url("/ok?rest"), **columns),
    )
    # Of another user, and disabled: these hear nothing.
    stage.add_webhook(*WANTED, url=sink.url("/ok?other"), signing_secret_enc=secret)
    stage.add_webhook(*WANTED, url=sink.url("/ok?disabled"), status="disabled", **columns)
    return Whole(stage, ses, sink, user_id, domain_id, webhooks)


def _statuses(stage: Stage) -> dict[str, str]:
    rows = stage.query('SELECT "to" ->> 0, status FROM emails WHERE sent_at IS NOT NULL')
    return {to.partition("@")[0]: status for to, status in rows}


def _links_lead_there(whole: Whole) -> None:
    opener = urllib.request.build_opener(_NoRedirect)
    for taken in whole.ses.taken():
        parsed = email.message_from_bytes(taken.octets, policy=email.policy.default)
        assert isinstance(parsed, email.message.EmailMessage)
        html = parsed.get_body(("html",))
        assert html is not None
        content = html.get_content()
        ((href,),) = [re.findall(r'href="([^"]+)"', content)]
        assert href.startswith(f"{whole.stage.web.url}/api/track/click/")
        with pytest.raises(urllib.error.HTTPError) as answer:
            opener.open(urllib.request.Request(href, headers={"User-Agent": BROWSER}), timeout=60)
        assert answer.value.code == 302
        assert answer.value.headers["Location"] == TARGET
        answer.value.close()
        ((image,),) = [re.findall(r'<img src="([^"]+)"', content)]
        with opener.open(urllib.request.Request(image, headers={"User-Agent": BROWSER}), timeout=60) as pixel:
            assert (pixel.status, pixel.headers["Content-Type"]) == (200, "image/gif")


def _check_rows(whole: Whole) -> None:
    """Contract 3 and 6: what the relay stored is as it was, and what the worker set."""
    rows = whole.stage.query('SELECT to_jsonb(e), sent_at FROM emails e ORDER BY "to" ->> 0')
    assert [row["to"] for row, _ in rows] == sorted([address(name)] for name in WAYS)
    for row, sent_at in rows:
        name = row["to"][0].partition("@")[0]
        assert uuid.UUID(row.pop("id")).version in range(1, 6)
        assert abs((datetime.now(UTC) - sent_at).total_seconds()) < 600
        created, attempted, sent = (
            datetime.fromisoformat(row.pop(f"{what}_at")) for what in ("created", "provider_last_attempted", "sent")
        )
        # The microseconds of a claim's mark name the claim: it lies up to a second before the claim.
        assert created - timedelta(seconds=1) <= attempted <= sent
        assert created <= sent
        expected = {
            "from": "Ann <ann@example.com>",
            "to": [address(name)],
            "subject": f"To {address(name)}",
            "text": TEXT,
            "html": HTML,
            "status": WAYS[name][0],
            "user_id": whole.user_id,
            "provider_retry_count": 0,
        }
        empty = {"cc": [], "bcc": [], "reply_to": [], "attachments": [], "tags": [], "headers": {}}
        assert {column: row[column] for column in expected} == expected
        assert {column: row[column] or type(value)() for column, value in empty.items()} == empty
        rest = row.keys() - expected.keys() - empty.keys() - {"idempotency_key"}
        assert {column: row[column] for column in rest} == dict.fromkeys(rest)


def _check_events(whole: Whole) -> None:
    """Contract 3, 7 and 8."""
    sources = set()
    for taken in whole.ses.taken():
        ((to,),) = whole.stage.query('SELECT "to" ->> 0 FROM emails WHERE id = %s', taken.email_id)
        name = to.partition("@")[0]
        rows = whole.stage.query(
            "SELECT type, source_id, user_id, payload, received_at FROM email_events WHERE email_id = %s ORDER BY type",
            taken.email_id,
        )
        assert [row[0] for row in rows] == sorted([*WAYS[name][1], "email.opened", "email.clicked"]), name
        for kind, source_id, user_id, payload, received_at in rows:
            assert user_id == whole.user_id
            assert abs((datetime.now(UTC) - received_at).total_seconds()) < 600
            if kind.startswith("email."):
                common = {"email_id": taken.email_id, "domain_id": whole.domain_id, "recipient": to}
                common |= {"user_agent": BROWSER, "ip": "127.0.0.1"}
                assert payload == common | ({"url": TARGET} if kind == "email.clicked" else {})
                assert source_id is None
                continue
            if kind != "sent":
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", payload.pop("timestamp"))
            assert payload == payload_of(kind, name)
            sources.add(str(uuid.UUID(source_id)))
    assert len(sources) == sum(len(types) for _, types in WAYS.values())
    refused = whole.stage.query(
        "SELECT type, source_id, email_id, payload FROM email_events WHERE email_id IS NULL ORDER BY received_at"
    )
    for (kind, source_id, email_id, payload), (name, reason) in zip(refused, SUPPRESSED.items(), strict=True):
        assert (kind, source_id, email_id) == ("suppressed", None, None)
        assert datetime.fromisoformat(payload.pop("submitted_at")).tzinfo is not None
        assert payload == {
            "reason": "recipient_suppressed",
            "recipients": [{"email": address(name), "reason": reason}],
            "recipient_count": 1,
        }


def _check_suppressions(whole: Whole) -> None:
    """Contract 3 and 8."""
    message_ids = {taken.email_id: taken.request["MessageId"] for taken in whole.ses.taken()}
    rows = whole.stage.query("SELECT to_jsonb(s) FROM email_suppressions s ORDER BY email")
    for (row,), name in zip(rows, sorted(SUPPRESSED), strict=True):
        uuid.UUID(row.pop("id"))
        assert datetime.fromisoformat(row.pop("suppressed_at")) == datetime.fromisoformat(row.pop("updated_at"))
        ((email_id, source_id),) = whole.stage.query(
            "SELECT e.id::text, v.source_id FROM emails e JOIN email_events v ON v.email_id = e.id"
            ' WHERE e."to" ->> 0 = %s AND v.type = %s',
            address(name),
            SUPPRESSED[name],
        )
        assert row == {
            "user_id": whole.user_id,
            "email": address(name),
            "reason": SUPPRESSED[name],
            "source_event_id": source_id,
            "source_email_id": email_id,
            "source_message_id": message_ids[email_id],
            "metadata": {
                "source": "ses",
                "sourceEventId": source_id,
                "sourceEmailId": email_id,
                "sourceMessageId": message_ids[email_id],
            },
        }


def _check_webhooks(whole: Whole) -> None:
    """Contract 3 and 9: a delivery for each event that is wanted, made once, signed as Svix's own verifier wants it."""
    wanting = dict.fromkeys(WANTED, whole.webhook_ids[0]) | {"email.complained": whole.webhook_ids[1]}
    events = {
        event_id: (kind if "." in kind else f"email.{kind}", payload)
        for event_id, kind, payload in whole.stage.query("SELECT id::text, type, payload FROM email_events")
    }
    assert {kind for kind, _ in events.values()} == wanting.keys()

    def deliveries() -> list[tuple[dict[str, Any]]]:
        return whole.stage.query("SELECT to_jsonb(d) FROM webhook_deliveries d ORDER BY created_at")

    eventually("all deliveries", lambda: all(row["status"] == "success" for (row,) in deliveries()))
    hooks = {hook.id: hook for hook in whole.sink.taken()}
    assert len(whole.sink.taken()) == len(hooks) == len(events)
    found = set()
    for (row,) in deliveries():
        event_id, delivery_id = row.pop("event_id"), row.pop("id")
        found.add(event_id)
        kind, payload = events[event_id]
        attempted_at = datetime.fromisoformat(row.pop("attempted_at"))
        assert datetime.fromisoformat(row.pop("created_at")) <= attempted_at
        assert row == {
            "webhook_id": wanting[kind],
            "attempt": 1,
            "status_code": 200,
            "response_body": "ok",
            "status": "success",
            "next_retry_at": None,
        }
        hook = hooks[f"whd_{delivery_id}_1"]
        _check_signature(hook)
        _check_hook(hook, kind, payload, attempted_at)
        assert hook.path == ("/ok?wanted" if kind in WANTED else "/ok?rest")
    assert found == events.keys()


def _check_signature(hook: Hook) -> None:
    key = WEBHOOK_SECRET.removeprefix("whsec_").encode()
    signed = f"{hook.id}.{hook.fields['svix-timestamp']}.{hook.body}".encode()
    digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert hook.fields["svix-signature"] == f"v1,{digest}"
    if importlib.util.find_spec("svix"):  # an environment may be older than requirements/dev.txt
        importlib.import_module("svix.webhooks").Webhook(key).verify(hook.body, hook.fields)


def _check_hook(hook: Hook, kind: str, payload: dict[str, Any], attempted_at: datetime) -> None:
    document = json.loads(hook.body)
    assert list(document) == ["id", "type", "created_at", "data"]
    assert (document["id"], document["type"], document["data"]) == (hook.id, kind, payload)
    assert abs((datetime.fromisoformat(document["created_at"]) - attempted_at).total_seconds()) <= 1
    assert abs(int(hook.fields["svix-timestamp"]) - attempted_at.timestamp()) <= 1
    assert hook.fields["content-type"] == "application/json"
    assert hook.server_name == "hooks.example.com"
