"""Tracked links over HTTP: where they lead, and what is recorded of whom (contract section 7)."""

from __future__ import annotations

import http.client
import uuid
from datetime import timedelta
from typing import Any

import pytest

from tests.integration.web.conftest import Stage


def test_a_click_is_redirected_and_recorded(stage: Stage) -> None:
    email_id, domain_id = stage.add_email(), stage.add_domain()
    webhook_id = stage.add_webhook("email.clicked")
    stage.add_webhook("email.opened")
    stage.add_webhook("email.clicked", status="disabled")
    stage.add_webhook("email.clicked", user_id="another")
    token = stage.token(emailId=email_id, domainId=domain_id, recipient="to@x.example")
    answer = stage.get(f"/api/track/click/{token}", User_Agent="Mözilla/5.0".encode().decode("latin-1"))
    assert answer.status == 302
    assert answer.headers["Location"] == "https://target.example/?a=1&b=2"
    assert "no-store" in answer.headers["Cache-Control"]
    assert answer.headers["Set-Cookie"] is None
    assert answer.body == b""
    # It is committed by the time of the answer.
    payload = {
        "email_id": email_id,
        "domain_id": domain_id,
        "recipient": "to@x.example",
        "url": "https://target.example/?a=1&b=2",
        "user_agent": "Mözilla/5.0",
        "ip": "127.0.0.1",
    }
    assert stage.events(email_id) == [("email.clicked", payload)]
    ((source_id, user_id, age),) = stage.query(
        "SELECT source_id, user_id, now() - received_at FROM email_events WHERE email_id = %s", email_id
    )
    assert (source_id, user_id) == (None, "user")
    assert timedelta(0) < age < timedelta(minutes=5)
    deliveries = stage.query(
        "SELECT d.webhook_id::text, d.attempt, d.status, d.next_retry_at FROM webhook_deliveries d"
        " JOIN email_events e ON e.id = d.event_id WHERE e.email_id = %s",
        email_id,
    )
    assert deliveries == [(webhook_id, 0, "pending", None)]
    assert stage.status(email_id) == "sent"


def test_an_open_is_an_image_and_recorded(stage: Stage) -> None:
    email_id, domain_id = stage.add_email(), stage.add_domain()
    answer = stage.get(f"/api/track/open/{stage.token('open', emailId=email_id, domainId=domain_id)}")
    assert (answer.status, answer.headers["Content-Type"], len(answer.body)) == (200, "image/gif", 43)
    assert answer.body.startswith(b"GIF89a")
    assert "no-store" in answer.headers["Cache-Control"]
    ((kind, payload),) = stage.events(email_id)
    assert kind == "email.opened"
    assert payload.keys() == {"email_id", "domain_id", "recipient", "user_agent", "ip"}
    assert (payload["recipient"], payload["user_agent"]) == (None, None)


@pytest.mark.parametrize(
    ("email", "domain", "token"),
    [
        ({"user_id": "another"}, {}, {}),
        ({}, {"user_id": "another"}, {}),
        ({}, {"track_clicks": False}, {}),
        ({}, {}, {"userId": "another"}),
        ({}, {}, {"userId": ""}),
        ({}, {}, {"userId": "us\0er"}),
        ({}, {}, {"domainId": str(uuid.uuid4())}),
        ({}, {}, {"emailId": str(uuid.uuid4())}),
        ({}, {}, {"emailId": "none"}),
        ({}, {}, {"domainId": "0" * 5000}),
    ],
)
def test_rows_and_switches_decide_what_is_recorded_and_never_what_is_answered(
    stage: Stage, email: dict[str, Any], domain: dict[str, Any], token: dict[str, Any]
) -> None:
    email_id, domain_id = stage.add_email(**email), stage.add_domain(**domain)
    path = f"/api/track/click/{stage.token(**({'emailId': email_id, 'domainId': domain_id} | token))}"
    answer = stage.get(path)
    assert (answer.status, answer.headers["Location"]) == (302, "https://target.example/?a=1&b=2")
    assert stage.events(email_id) == []


def test_head_records_nothing_and_says_the_same(stage: Stage) -> None:
    domain_id = stage.add_domain()
    for kind in ("click", "open"):
        email_id = stage.add_email()
        path = f"/api/track/{kind}/{stage.token(kind, emailId=email_id, domainId=domain_id)}"
        head = stage.request("HEAD", path)
        assert head.body == b""
        assert stage.events(email_id) == []
        got = stage.get(path)
        assert head.status == got.status
        for name in ("Location", "Content-Length", "Content-Type", "Cache-Control"):
            assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "FOO"])
def test_other_methods_are_not_found(stage: Stage, method: str) -> None:
    assert stage.request(method, f"/api/track/click/{stage.token()}").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/track",
        "/api/track/click",
        "/api/track/click/",
        "/api/track/click/x",
        "/api/track/click/.",
        "/api/track/click/https://evil.example/",
        "/api/track/click//evil.example/",
        "/api/track/click/?targetUrl=https://evil.example/",
        "/api/track/other/{click}",
        "/api/track/open/{click}",
        "/api/track/click/{open}",
        "/api/track/click/{click}x",
        "/api/track/click/{click}.",
        "/api/track/click/{click}/",
        "/api/track/click/{click}=",
        "/api/track/click/{click}%20",
        "/api/track/click/{click}%00",
        "/api/track/click/x{click}",
        "/API/track/click/{click}",
        "//api/track/click/{click}",
        "/metrics",
        "/events/ses",
        "/events/ses/",
    ],
)
def test_whatever_does_not_verify_is_not_found_and_never_a_redirect(stage: Stage, path: str) -> None:
    answer = stage.get(path.format(click=stage.token(), open=stage.token("open")))
    assert answer.status == 404
    assert answer.headers["Location"] is None
    assert b"evil" not in answer.body


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("203.0.113.9, 192.0.2.1", "192.0.2.1"),  # the first one was written by the client
        ("192.0.2.1, 127.0.0.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, unknown", "127.0.0.1"),
        ("', drop table", "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_the_client(stage: Stage, forwarded: str, client: str) -> None:
    email_id, domain_id = stage.add_email(), stage.add_domain()
    token = stage.token("open", emailId=email_id, domainId=domain_id)
    stage.get(f"/api/track/open/{token}", X_Forwarded_For=forwarded)
    ((_, payload),) = stage.events(email_id)
    assert payload["ip"] == client


def test_a_long_link_is_followed(stage: Stage) -> None:
    """As long as one that mail is sent with may be."""
    target = "https://target.example/?" + 'q="' * 10_000
    answer = stage.get(f"/api/track/click/{stage.token(targetUrl=target)}")
    assert answer.status == 302
    assert answer.headers["Location"] == target.replace('"', "%22")


def test_several_requests_on_one_connection(stage: Stage) -> None:
    connection = http.client.HTTPConnection(stage.web.host, stage.web.port, timeout=30)
    for _ in range(3):
        connection.request("GET", f"/api/track/click/{stage.token()}")
        response = connection.getresponse()
        assert (response.status, response.read()) == (302, b"")
        connection.request("GET", "/nothing")
        response = connection.getresponse()
        assert response.status == 404
        response.read()
    connection.close()
