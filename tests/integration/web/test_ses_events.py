"""What SES tells by way of SNS: who is believed, and what becomes of mail, suppressions and webhooks (contract 8)."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import redis

from relay.redis import suppression_lists
from scripts.services import Valkey
from scripts.services.sns_double import CERTIFICATE_PATH, HOST, TOPIC, ses_message
from tests.integration.web.conftest import Stage
from tests.support.service_process import eventually

TO = "To@X.Example"
#: SES's word → our type, and the member whose content is the payload.
TYPES = {
    "Send": ("sent", "send"),
    "Delivery": ("delivered", "delivery"),
    "Bounce": ("bounced", "bounce"),
    "Complaint": ("complained", "complaint"),
    "DeliveryDelay": ("delivery_delayed", "deliveryDelay"),
    "Open": ("opened", "open"),
    "Click": ("clicked", "click"),
    "Reject": ("failed", "reject"),
    "RenderingFailure": ("failed", "failure"),
}


def suppressions(stage: Stage, email: str) -> list[tuple[Any, ...]]:
    return stage.query("SELECT reason, user_id FROM email_suppressions WHERE email = %s", email)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("word", TYPES)
def test_an_event_is_recorded_with_the_payload_as_it_came(stage: Stage, word: str, version: str) -> None:
    kind, member = TYPES[word]
    email_id = stage.add_email()
    webhook_id = stage.add_webhook(f"email.{kind}")
    text = ses_message(word, email_id, [TO])
    message = stage.sns.notification(text, SignatureVersion=version, Subject="Amazon SES Email Event Notification")
    for _ in range(2):  # a repeat does nothing
        assert stage.post(message).status == 200
    assert stage.events(email_id) == [(kind, json.loads(text)[member])]
    assert stage.query(
        "SELECT e.source_id, e.user_id, d.status, d.attempt FROM email_events e JOIN webhook_deliveries d"
        " ON d.event_id = e.id AND d.webhook_id = %s WHERE e.email_id = %s",
        webhook_id,
        email_id,
    ) == [(message["MessageId"], "user", "pending", 0)]
    assert stage.status(email_id) == (kind if kind in ("delivered", "bounced", "complained") else "sent")


#: Status before, and after the events in that order.
WAYS = {
    ("queued", "Delivery"): "delivered",
    ("processing", "Delivery"): "delivered",
    ("failed", "Delivery"): "delivered",
    ("queued", "Bounce"): "bounced",
    ("failed", "Bounce"): "bounced",
    ("processing", "Complaint"): "complained",
    ("sent", "Bounce", "Delivery"): "bounced",
    ("sent", "Delivery", "Bounce"): "bounced",
    ("sent", "Delivery", "Complaint"): "complained",
    ("sent", "Complaint", "Delivery"): "complained",
    ("sent", "Complaint", "Bounce"): "complained",
    ("sent", "Bounce", "Complaint"): "bounced",
    ("delivered", "Send", "Open", "Click", "DeliveryDelay"): "delivered",
    ("canceled", "Delivery"): "canceled",
    ("suppressed", "Delivery"): "suppressed",
}


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_status_moves_forward_alone(stage: Stage, way: tuple[str, ...]) -> None:
    before, *words = way
    email_id = stage.add_email(status=before)
    for word in words:
        assert stage.post(stage.sns.notification(ses_message(word, email_id, [TO]))).status == 200
    assert stage.status(email_id) == WAYS[way]
    assert len(stage.events(email_id)) == len(words)


def test_a_permanent_bounce_and_a_complaint_suppress_their_recipients(stage: Stage) -> None:
    email_id = stage.add_email()
    name = uuid.uuid4().hex
    bounce = stage.sns.notification(
        ses_message("Bounce", email_id, [f" A-{name}@X.example", f"B <b-{name}@x.example>"])
    )
    assert stage.post(bounce).status == 200
    rows = stage.query(
        "SELECT email, user_id, reason, source_event_id, source_email_id::text, source_message_id, metadata"
        " FROM email_suppressions WHERE email LIKE %s ORDER BY email",
        f"%{name}%",
    )
    ses_id = "0100018f-0000-4000-8000-000000000000-000000"
    metadata = {
        "source": "ses",
        "sourceEventId": bounce["MessageId"],
        "sourceEmailId": email_id,
        "sourceMessageId": ses_id,
    }
    assert rows == [
        (f"{who}-{name}@x.example", "user", "bounced", bounce["MessageId"], email_id, ses_id, metadata) for who in "ab"
    ]
    another = stage.add_email()
    stage.post(stage.sns.notification(ses_message("Complaint", another, [f"a-{name}@x.example"])))
    assert suppressions(stage, f"a-{name}@x.example") == [("complained", "user")]
    stage.post(stage.sns.notification(ses_message("Bounce", another, [f"a-{name}@x.example"])))
    assert suppressions(stage, f"a-{name}@x.example") == [("complained", "user")]


def test_a_transient_bounce_suppresses_no_address(stage: Stage) -> None:
    email_id, address = stage.add_email(), f"{uuid.uuid4().hex}@x.example"
    stage.post(stage.sns.notification(ses_message("Bounce", email_id, [address], bounceType="Transient")))
    assert suppressions(stage, address) == []
    assert stage.status(email_id) == "bounced"


def test_the_relays_caches_are_updated_at_once(stage: Stage, valkey_server: Valkey) -> None:
    email_id, address = stage.add_email(), f"{uuid.uuid4().hex}@x.example"
    digest = suppression_lists.digest(suppression_lists.digest_prefix("user"), address)
    with redis.Redis.from_url(valkey_server.url) as client:
        client.set(suppression_lists.entry_key(digest), suppression_lists.CLEAR)
        stage.post(stage.sns.notification(ses_message("Bounce", email_id, [address])))
        eventually("told", lambda: client.get(suppression_lists.entry_key(digest)) == b"bounced")


def test_whose_mail_it_is(stage: Stage) -> None:
    """The header counts before the tag; what is unknown or no id is answered 200, or SNS would come again."""
    email_id = stage.add_email()
    for change in (
        lambda mail: mail.pop("headers"),
        lambda mail: mail.update(headers=[{"name": "x-entity-id", "value": email_id.upper()}], tags={}),
    ):
        message = json.loads(ses_message("Open", email_id, [TO]))
        change(message["mail"])
        assert stage.post(stage.sns.notification(json.dumps(message))).status == 200
    assert len(stage.events(email_id)) == 2
    for change in (
        lambda mail: mail.update(headers=[{"name": "X-Entity-ID", "value": "no id"}]),
        lambda mail: mail.update(headers=[], tags={}),
        lambda mail: mail["headers"][1].update(value=str(uuid.uuid4())),
        lambda mail: mail["headers"][1].update(value=str(uuid.uuid1(node=1)).replace("-1", "-7", 1)),
    ):
        message = json.loads(ses_message("Open", email_id, [TO]))
        change(message["mail"])
        assert stage.post(stage.sns.notification(json.dumps(message))).status == 200
    assert len(stage.events(email_id)) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Successfully validated SNS topic for Amazon SES event publishing.",
        "",
        "[]",
        "{}",
        '{"eventType": "Subscription", "mail": {}}',
        '{"eventType": "Delivery"}',
        '{"eventType": ["Delivery"], "mail": {"tags": {"X-Entity-ID": [{}]}}}',
        '{"notificationType": "AmazonSnsSubscriptionSucceeded", "message": "…"}',
    ],
)
def test_what_is_no_event_is_answered_200(stage: Stage, text: str) -> None:
    assert stage.post(stage.sns.notification(text)).status == 200


def test_odd_content_is_stored_as_far_as_postgres_can(stage: Stage) -> None:
    email_id = stage.add_email()
    text = ses_message("Delivery", email_id, [TO], odd="\0\\u0000 \ud800", big=10**30, deep=[[[[{}]]]])
    assert stage.post(stage.sns.notification(text)).status == 200
    ((_, payload),) = stage.events(email_id)
    assert payload["odd"] == "\\u0000 ?"
    assert payload["big"] == 10**30


def test_who_is_not_believed(stage: Stage) -> None:
    email_id = stage.add_email()
    text = ses_message("Delivery", email_id, [TO])
    good = stage.sns.notification(text)
    asked = len(stage.sns.requests)
    for wrong, status in (
        (good | {"Message": text.replace("250 ok", "250 OK")}, 403),
        (good | {"Type": "UnsubscribeConfirmation", "Token": "", "SubscribeURL": ""}, 403),
        (good | {"TopicArn": f"{TOPIC}x"}, 403),
        (stage.sns.notification(text, TopicArn="arn:aws:sns:us-east-1:1:other"), 403),
        (stage.sns.notification(text, SignatureVersion="3"), 403),
        (good | {"SignatureVersion": "2"}, 403),
        (good | {"Signature": ""}, 400),
        (good | {"Signature": "é"}, 400),
        (good | {"Message": None}, 400),
        (good | {"MessageId": ""}, 400),
        ({"Type": "Other"}, 400),
        (json.loads(text) | {"Type": ""}, 400),  # raw message delivery
    ):
        assert stage.post(wrong).status == status, wrong
    for url in (
        f"http://{HOST}{CERTIFICATE_PATH}",
        f"https://{HOST}.evil.example{CERTIFICATE_PATH}",
        f"https://evil.example/{HOST}{CERTIFICATE_PATH}",
        f"https://{HOST}@evil.example{CERTIFICATE_PATH}",
        f"https://evil.example#@{HOST}{CERTIFICATE_PATH}",
        f"https://{HOST}:8443{CERTIFICATE_PATH}",
        f"https://{HOST}{CERTIFICATE_PATH}?x",
        f"https://{HOST}{CERTIFICATE_PATH}\n",
        f"https://{HOST}/x/..{CERTIFICATE_PATH}",
        f"https://{HOST.upper()}{CERTIFICATE_PATH}",
        f"https://s3.amazonaws.com{CERTIFICATE_PATH}",
        f"https://sns.us-east-1.amazonaws.com.co{CERTIFICATE_PATH}",
        f"https://sns..amazonaws.com{CERTIFICATE_PATH}",
        f"https://x.sns.us-east-1.amazonaws.com{CERTIFICATE_PATH}",
        f"https://{HOST}/SimpleNotificationService-x.pem",
        "file:///etc/passwd",
        "",
    ):
        assert stage.post(stage.sns.notification(text, SigningCertURL=url)).status == 403, url
    for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"Type": {"a": 1}}'):
        assert stage.post(body).status == 400, body[:20]
    assert stage.post(good, x_amz_sns_message_type="SubscriptionConfirmation").status == 400
    assert stage.request("POST", "/events/ses", json.dumps(good).encode()).status == 400  # without the field
    assert stage.post(b" " * 262_145).status == 413
    assert stage.events(email_id) == []
    assert stage.sns.requests[asked:] in ([], [CERTIFICATE_PATH])  # nothing else was fetched
    assert stage.post(good).status == 200


def test_the_certificate_is_fetched_once(stage: Stage) -> None:
    assert stage.post(stage.sns.notification("{}")).status == 200
    fetched = stage.sns.requests.count(CERTIFICATE_PATH)  # by the processes of other tests too
    for _ in range(5):
        assert stage.post(stage.sns.notification("{}")).status == 200
    assert stage.sns.requests.count(CERTIFICATE_PATH) == fetched >= 1


def test_a_certificate_that_cannot_be_had_is_no_refusal(stage: Stage) -> None:
    """SNS comes again: the host may have been away."""
    url = f"https://{HOST}/SimpleNotificationService-{'f' * 32}.pem"
    assert stage.post(stage.sns.notification("{}", SigningCertURL=url)).status == 503


def test_a_subscription_is_confirmed_at_amazons_host_alone(stage: Stage) -> None:
    message = stage.sns.confirmation()
    assert stage.post(message).status == 200
    assert stage.sns.requests[-1] == message["SubscribeURL"].removeprefix(f"https://{HOST}")
    asked = len(stage.sns.requests)
    for url in (
        "https://evil.example/?Action=ConfirmSubscription",
        f"https://{HOST}@evil.example/?Action=ConfirmSubscription",
        f"http://{HOST}/?Action=ConfirmSubscription",
        f"https://{HOST}:444/?Action=ConfirmSubscription",
        f"https://{HOST}/?Action=ConfirmSubscription&x=\r\nHost: evil.example",
    ):
        assert stage.post(stage.sns.confirmation(SubscribeURL=url)).status == 403
    assert stage.post(stage.sns.confirmation(TopicArn="arn:aws:sns:us-east-1:1:other")).status == 403
    assert stage.post(stage.sns.confirmation() | {"Token": "x"}).status == 403
    assert len(stage.sns.requests) == asked
    stage.sns.statuses.append(500)
    assert stage.post(stage.sns.confirmation()).status == 503
