"""What becomes of a message, from an SMTP client's point of view and from the tables': no part is replaced."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import smtplib
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis

from scripts.database import NewApiKey, create_webhook
from tests.support.relay_process import Relay
from tests.support.transaction import compose, queued_id, send

Query = Callable[..., list[dict[str, Any]]]


def everyone(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(address for row in rows for field in ("to", "cc", "bcc") for address in row[field] or [])


def test_a_row_is_as_the_contract_has_it(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client(api_key.token) as client:
        email_id = queued_id(send(client, compose()))
    (row,) = query("SELECT * FROM emails")
    assert row.pop("created_at") is not None
    assert row.pop("headers") is not None
    assert row.pop("text").rstrip() == "Hi there"
    expected = {
        "id": email_id,
        "from": "Ann <ann@example.com>",
        "to": ["to@x.example"],
        "cc": [],
        "bcc": [],
        "reply_to": [],
        "subject": "Hello",
        "html": "",
        "status": "queued",
        "attachments": [],
        "tags": [],
        "user_id": api_key.user_id,
        "provider_retry_count": 0,
    }
    assert {name: value for name, value in row.items() if name in expected} == expected
    assert all(value is None for name, value in row.items() if name not in expected), row


def test_a_bcc_that_the_library_stripped_is_delivered(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    mail = compose(Cc="cc@x.example", Bcc="hidden@x.example")
    with relay.client(api_key.token) as client:
        client.send_message(mail)
    (row,) = query('SELECT "to", cc, bcc, headers FROM emails')
    assert (row["to"], row["cc"], row["bcc"]) == (["to@x.example"], ["cc@x.example"], ["hidden@x.example"])
    assert "hidden" not in json.dumps(row["headers"])


def test_undisclosed_recipients_are_those_of_the_envelope(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client(api_key.token) as client:
        send(client, compose(To="undisclosed-recipients:;"), "a@x.example", "b@x.example")
        nobody = send(client, b"From: ann@example.com\r\nTo: undisclosed-recipients:;\r\n\r\nx\r\n", "c@x.example")
    assert nobody[0] == 250
    rows = query('SELECT "to", bcc FROM emails ORDER BY created_at')
    assert [(row["to"], row["bcc"]) for row in rows] == [([], ["a@x.example", "b@x.example"]), ([], ["c@x.example"])]


def test_the_user_name_envelope_makes_the_envelope_decide(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client() as client:
        client.login("envelope", api_key.token)
        send(client, compose(To="a@x.example, b@x.example", Cc="c@x.example"), "b@x.example", "new@x.example")
    (row,) = query('SELECT "to", cc, bcc FROM emails')
    assert (row["to"], row["cc"], row["bcc"]) == (["b@x.example"], [], ["new@x.example"])


def test_the_rule_headers_ignores_the_envelope(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query
) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, SMTP_RELAY_RECIPIENTS="headers")
    with relay.client(api_key.token) as client:
        queued_id(send(client, compose(), "other@x.example"))
        code, text = send(client, compose(To=""), "other@x.example")
    assert (code, text[:5]) == (550, "5.6.0")
    assert [row["to"] for row in query('SELECT "to" FROM emails')] == [["to@x.example"]]


def test_more_recipients_than_ses_takes_become_several_rows(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    people = [f"r{number}@x.example" for number in range(120)]
    with relay.client(api_key.token) as client:
        first = queued_id(send(client, compose(To=", ".join(people)), *people))
        again = queued_id(send(client, compose(Idempotency_Key="k", To=", ".join(people)), *people))
        assert queued_id(send(client, compose(Idempotency_Key="k", To=", ".join(people)), *people)) == again
    rows = query('SELECT id, "to", cc, bcc FROM emails')
    assert first in {row["id"] for row in rows}
    assert len(rows) == 6
    assert everyone(rows) == sorted(people * 2)
    assert max(len(row["to"]) for row in rows) <= 50


# One message, however often and in whatever pieces it comes (deduplication)


def test_a_split_message_reaches_each_recipient_once(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    mail = compose(To="a@x.example, b@x.example", Message_ID="<split@example.com>")
    with relay.client(api_key.token) as client:
        first = queued_id(send(client, mail, "a@x.example"))
        assert queued_id(send(client, mail, "b@x.example")) == first
        assert "already queued" in send(client, mail, "b@x.example")[1]
        second = queued_id(send(client, mail, "hidden@x.example"))
        assert queued_id(send(client, mail, "hidden@x.example", "a@x.example")) in (first, second)
    rows = query('SELECT id, "to", cc, bcc FROM emails ORDER BY created_at')
    assert [row["id"] for row in rows] == [first, second]
    assert [(row["to"], row["bcc"]) for row in rows] == [
        (["a@x.example", "b@x.example"], []),
        ([], ["hidden@x.example"]),
    ]


def test_a_message_split_over_connections_at_one_moment_reaches_each_recipient_once(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query
) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, WEB_CONCURRENCY="2")
    people = [f"r{number}@x.example" for number in range(12)]
    clients = [relay.client(api_key.token, username="envelope" if n % 2 else "any") for n in range(12)]
    mail = compose(To=", ".join(people[:6]), Message_ID="<storm@example.com>")
    barrier = threading.Barrier(12)
    answers: list[tuple[int, str]] = []

    def one(client: smtplib.SMTP, recipient: str) -> None:
        barrier.wait()
        answers.append(send(client, mail, recipient))

    threads = [threading.Thread(target=one, args=pair) for pair in zip(clients, people, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [code for code, _ in answers] == [250] * 12, answers
    assert everyone(query('SELECT "to", cc, bcc FROM emails')) == sorted(people)


def test_without_a_message_id_nothing_is_a_repeat(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client(api_key.token) as client:
        assert queued_id(send(client, compose())) != queued_id(send(client, compose()))
    assert len(query("SELECT 1 FROM emails")) == 2


def test_other_content_or_another_user_is_no_repeat(
    relay: Relay, api_key: NewApiKey, make_api_key: Callable[..., NewApiKey], query: Query
) -> None:
    with relay.client(api_key.token) as client:
        send(client, compose(Message_ID="<same@example.com>"))
        send(client, compose(Message_ID="<same@example.com>", text="Different\n"))
    with relay.client(make_api_key().token) as client:
        send(client, compose(Message_ID="<same@example.com>"))
    assert len(query("SELECT 1 FROM emails")) == 3


def test_deduplication_can_be_switched_off(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query
) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, SMTP_RELAY_DEDUPE_SECONDS="0")
    with relay.client(api_key.token) as client:
        for _ in range(2):
            queued_id(send(client, compose(Message_ID="<same@example.com>")))
    assert len(query("SELECT 1 FROM emails")) == 2


def test_a_claim_that_never_became_a_row_holds_up_no_other_message(
    relay: Relay, api_key: NewApiKey, query: Query, redis_url: str
) -> None:
    """A process that dies between its claim and its commit: the repeat must be stored, not believed to be stored."""
    mail = compose(Message_ID="<lost@example.com>")
    with relay.client(api_key.token) as client:
        queued_id(send(client, mail))
        query("DELETE FROM emails")
        with redis.Redis.from_url(redis_url) as client_of_redis:
            (name,) = client_of_redis.keys("smtp-relay:seen:*")
            for field, value in client_of_redis.hgetall(name).items():
                holder = value.decode().rpartition(":")[0]
                client_of_redis.hset(name, field, f"{holder}:{int((time.time() - 60) * 1000)}")
        second = queued_id(send(client, mail))
    assert [row["id"] for row in query("SELECT id FROM emails")] == [second]


# Idempotency


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-OpenSend-Idempotency-Key", "Resend-Idempotency-Key"])
def test_a_repeat_under_an_idempotency_key_stores_nothing(
    relay: Relay, api_key: NewApiKey, query: Query, name: str
) -> None:
    with relay.client(api_key.token) as client:
        first = queued_id(send(client, compose(**{name: "order-17"})))
        code, text = send(client, compose(**{name: "order-17"}))
    assert (code, text) == (250, f"2.0.0 Ok: already queued as {first}")
    (row,) = query("SELECT id, idempotency_key, headers FROM emails")
    assert (row["id"], row["idempotency_key"]) == (first, "order-17")
    assert not any("idempotency" in header.lower() for header in row["headers"])


def test_another_user_may_use_the_same_key(relay: Relay, make_api_key: Callable[..., NewApiKey], query: Query) -> None:
    for _ in range(2):
        with relay.client(make_api_key().token) as client:
            queued_id(send(client, compose(Idempotency_Key="k")))
    assert len(query("SELECT 1 FROM emails")) == 2


def test_a_key_is_released_after_a_day(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client(api_key.token) as client:
        first = queued_id(send(client, compose(Idempotency_Key="k")))
        query("UPDATE emails SET created_at = now() - interval '25 hours'")
        second = queued_id(send(client, compose(Idempotency_Key="k")))
    keys = {row["id"]: row["idempotency_key"] for row in query("SELECT id, idempotency_key FROM emails")}
    assert keys == {first: None, second: "k"}


def test_one_key_at_one_moment_makes_one_row(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    clients = [relay.client(api_key.token) for _ in range(16)]
    barrier = threading.Barrier(16)
    ids: list[str] = []

    def one(client: smtplib.SMTP) -> None:
        barrier.wait()
        ids.append(queued_id(send(client, compose(Idempotency_Key="race"))))

    threads = [threading.Thread(target=one, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = query("SELECT id FROM emails")
    assert ids == [row["id"]] * 16


def test_a_split_message_with_a_key_still_reaches_all_recipients(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    mail = compose(To="a@x.example", Message_ID="<k@example.com>", Idempotency_Key="k")
    with relay.client(api_key.token) as client:
        queued_id(send(client, mail, "a@x.example"))
        queued_id(send(client, mail, "hidden@x.example"))
        queued_id(send(client, mail, "hidden@x.example"))
    assert everyone(query('SELECT "to", cc, bcc FROM emails')) == ["a@x.example", "hidden@x.example"]


@pytest.mark.parametrize("key", ["", "x" * 257])
def test_a_bad_key_is_refused(relay: Relay, api_key: NewApiKey, query: Query, key: str) -> None:
    raw = f"From: ann@example.com\r\nTo: a@x.example\r\nIdempotency-Key: {key}\r\n\r\nx\r\n".encode()
    with relay.client(api_key.token) as client:
        code, text = send(client, raw)
    assert (code, text[:5]) == (550, "5.6.0")
    assert query("SELECT 1 FROM emails") == []


def test_tags(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    mail = compose()
    mail["X-OpenSend-Tag"] = "campaign=autumn"
    mail["X-OpenSend-Tag"] = "kind=news"
    bad = compose()
    bad["X-OpenSend-Tag"] = "no spaces=in names"
    with relay.client(api_key.token) as client:
        queued_id(send(client, mail))
        code, text = send(client, bad)
    assert (code, text[:5]) == (550, "5.6.0")
    (row,) = query("SELECT tags FROM emails")
    assert row["tags"] == [{"name": "campaign", "value": "autumn"}, {"name": "kind", "value": "news"}]


# Suppression


def suppress(query: Query, user_id: str, email: str, reason: str = "bounced") -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
        " VALUES (%s, %s, %s, %s, now(), now())",
        str(uuid.uuid4()),
        user_id,
        email,
        reason,
    )


@pytest.mark.parametrize("field", ["To", "Cc", "Bcc", "envelope"])
def test_a_suppressed_recipient_in_any_place_is_refused(
    relay: Relay, api_key: NewApiKey, query: Query, field: str
) -> None:
    suppress(query, api_key.user_id, "gone@x.example", "complained")
    fields = {field: "Gone@X.example"} if field != "envelope" else {}
    envelope = ["Gone@X.example"] if field == "envelope" else ["to@x.example"]
    with relay.client(api_key.token) as client:
        code, text = send(client, compose(**fields), *envelope)
        queued_id(send(client, compose()))
    assert (code, text) == (550, "5.7.1 Recipient suppressed: gone@x.example (complained)")
    assert len(query("SELECT 1 FROM emails")) == 1


def test_a_refusal_is_an_event_for_the_webhooks(
    relay: Relay, api_key: NewApiKey, query: Query, postgres_url: str
) -> None:
    suppress(query, api_key.user_id, "gone@x.example", "manual")
    wanted = create_webhook(postgres_url, "email.sent", "email.suppressed", user_id=api_key.user_id)
    create_webhook(postgres_url, "email.sent", user_id=api_key.user_id)
    create_webhook(postgres_url, "email.suppressed", status="disabled", user_id=api_key.user_id)
    with relay.client(api_key.token) as client:
        assert send(client, compose(To="gone@x.example"), "gone@x.example")[0] == 550
    (event,) = query("SELECT * FROM email_events")
    assert (event["type"], event["email_id"], event["user_id"]) == ("suppressed", None, api_key.user_id)
    payload = event["payload"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", payload.pop("submitted_at"))
    assert payload == {
        "reason": "recipient_suppressed",
        "recipient_count": 1,
        "recipients": [{"email": "gone@x.example", "reason": "manual"}],
    }
    (delivery,) = query("SELECT * FROM webhook_deliveries")
    assert (delivery["webhook_id"], delivery["event_id"]) == (wanted, event["id"])
    assert (delivery["status"], delivery["attempt"]) == ("pending", 0)


def test_a_suppression_that_is_added_while_the_cache_says_no_is_seen_at_once(
    relay: Relay, api_key: NewApiKey, query: Query
) -> None:
    with relay.client(api_key.token) as client:
        queued_id(send(client, compose()))
        suppress(query, api_key.user_id, "to@x.example")
        assert send(client, compose())[0] == 550
    assert len(query("SELECT 1 FROM emails")) == 1


def test_another_users_suppression_does_not_count(
    relay: Relay, api_key: NewApiKey, make_api_key: Callable[..., NewApiKey], query: Query
) -> None:
    suppress(query, make_api_key().user_id, "to@x.example")
    with relay.client(api_key.token) as client:
        queued_id(send(client, compose()))


# The key


@pytest.mark.parametrize(
    "sender",
    [
        "ann@evil.example",
        "ann@sub.example.com",
        "ann@example.com.evil.example",
        "ann@notexample.com",
        '"ann@example.com" <ann@evil.example>',
        "ann@example.com (ann@example.com) <ann@evil.example>",
        "(ann@example.com) ann@evil.example",
        "=?utf-8?q?ann=40example=2Ecom?= <ann@evil.example>",
        "Friends: ann@example.com, eve@evil.example;",
        "ann@example.com, eve@evil.example",
        "<@example.com:eve@evil.example>",
        "ann@example.com\r\nFrom: eve@evil.example",
        "ann@ex\u0430mple.com",
    ],
)
def test_a_restricted_key_sends_from_its_domain_alone(
    relay: Relay, make_api_key: Callable[..., NewApiKey], query: Query, sender: str
) -> None:
    raw = f"From: {sender}\r\nTo: to@x.example\r\n\r\nx\r\n".encode()
    with relay.client(make_api_key(domain="Example.com").token) as client:
        code, text = send(client, raw)
        assert (code, text) == (550, "5.7.1 The API key may only send from example.com")
        queued_id(send(client, b"From: Ann <ann@EXAMPLE.com>\r\nTo: to@x.example\r\n\r\nx\r\n"))
    assert len(query("SELECT 1 FROM emails")) == 1


def test_a_key_may_name_its_domain_by_id(relay: Relay, make_api_key: Callable[..., NewApiKey], query: Query) -> None:
    user_id, domain_id = str(uuid.uuid4()), str(uuid.uuid4())
    query(
        "INSERT INTO domains (id, name, status, track_clicks, track_opens, user_id)"
        " VALUES (%s, 'example.com', 'verified', false, false, %s)",
        domain_id,
        user_id,
    )
    with relay.client(make_api_key(user_id=user_id, domain=domain_id).token) as client:
        queued_id(send(client, compose()))
        assert send(client, compose(From="ann@evil.example"))[0] == 550
    with relay.client(make_api_key(user_id="someone-else", domain=domain_id).token) as client:
        assert send(client, compose())[0] == 550


def test_unknown_keys_and_keys_without_a_user_are_refused(
    relay: Relay, make_api_key: Callable[..., NewApiKey], query: Query
) -> None:
    orphan = make_api_key()
    query("UPDATE api_keys SET user_id = NULL")
    for token in ("os_live_wrong", orphan.token):
        with relay.client() as client, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client.login("user", token)
        assert refused.value.smtp_code == 535


def test_white_space_around_the_key_does_not_matter(relay: Relay, api_key: NewApiKey) -> None:
    with relay.client(f" {api_key.token}\t"):
        pass


def test_the_shared_cache_entry_has_the_contracts_form(relay: Relay, api_key: NewApiKey, redis_url: str) -> None:
    with relay.client(api_key.token), redis.Redis.from_url(redis_url) as shared:
        name = f"auth:apikey:{hashlib.sha256(api_key.token.encode()).hexdigest()}"
        # The reply to AUTH doesn't wait for the entry.
        deadline = time.monotonic() + 20
        while not shared.exists(name) and time.monotonic() < deadline:
            time.sleep(0.02)
        entry, ttl = json.loads(shared.get(name) or b"null"), shared.ttl(name)
    assert entry == {"apiKeyId": api_key.id, "permission": "full_access", "domain": None, "userId": api_key.user_id}
    assert 0 < ttl <= 60


def test_a_revoked_key_ends_an_open_session_at_once(
    relay: Relay, api_key: NewApiKey, query: Query, redis_url: str
) -> None:
    """Revocation as the dashboard does it: the row goes, and the shared cache entry with it."""
    with relay.client(api_key.token) as client:
        queued_id(send(client, compose()))
        query("DELETE FROM api_keys")
        with redis.Redis.from_url(redis_url) as shared:
            shared.delete(f"auth:apikey:{hashlib.sha256(api_key.token.encode()).hexdigest()}")
        code, text = send(client, compose())
        assert (code, text[:5]) == (535, "5.7.8")
    with pytest.raises(smtplib.SMTPAuthenticationError):
        relay.client(api_key.token)
    assert len(query("SELECT 1 FROM emails")) == 1


def test_last_used_at_is_kept(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    with relay.client(api_key.token) as client:
        queued_id(send(client, compose()))
    until = time.monotonic() + 15
    while query("SELECT last_used_at FROM api_keys")[0]["last_used_at"] is None:
        assert time.monotonic() < until, relay.log
        time.sleep(0.1)


# Large messages


def test_a_large_message_arrives_to_the_octet(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    content = os.urandom(3_000_000)
    mail = compose()
    mail.add_attachment(content, maintype="application", subtype="octet-stream", filename="Prüfbericht.bin")
    with relay.client(api_key.token) as client:
        email_id = queued_id(send(client, mail))
        queued_id(send(client, mail))
    row = query("SELECT id, attachments FROM emails ORDER BY created_at")[0]
    (attachment,) = row["attachments"]
    assert (row["id"], attachment["filename"]) == (email_id, "Prüfbericht.bin")
    assert base64.b64decode(attachment["content"]) == content


def test_too_large_is_552_and_the_connection_goes_on(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query
) -> None:
    relay = start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES="200000",
        SMTP_RELAY_SPOOL_THRESHOLD_BYTES="50000",
    )
    with relay.client(api_key.token) as client:
        assert client.mail("ann@example.com", ["SIZE=200001"])[0] == 552
        assert send(client, compose(text="x" * 70 + "\r\n").as_bytes() + b"y" * 200_000 + b"\r\n")[0] == 552
        queued_id(send(client, compose()))
        queued_id(send(client, compose(text=("z" * 70 + "\n") * 2000)))
    assert len(query("SELECT 1 FROM emails")) == 2
