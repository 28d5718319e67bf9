"""One mail from its row to SES, and what is recorded of it (contract section 6)."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.delivery.outbound_http import Outbound, UnavailableError
from relay.mail import parse
from scripts.database import create_webhook
from scripts.services import Ses

Query = Callable[..., list[tuple[Any, ...]]]


def status(query: Query, email_id: str) -> str:
    return str(query("SELECT status FROM emails WHERE id = %s", email_id)[0][0])


def events(query: Query, email_id: str) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (kind, source, payload)
        for kind, source, payload in query(
            "SELECT type, source_id, payload FROM email_events WHERE email_id = %s ORDER BY received_at, type", email_id
        )
    ]


def test_a_row_becomes_a_mail_and_its_status_sent(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query, postgres_url: str
) -> None:
    attachment = {"filename": "Übersicht.pdf", "content": base64.b64encode(b"%PDF").decode()}
    email_id = add_email(
        to=["to@x.example"],
        cc=["cc@x.example"],
        bcc=["bcc@x.example"],
        subject="Grüße",
        html="<p>ä</p>",
        text="ä\n",
        attachments=[attachment],
    )
    webhook = create_webhook(postgres_url, "email.sent")
    deliver(email_id)
    (taken,) = ses.taken()
    assert taken.email_id == email_id
    assert taken.request["Destination"] == {
        "ToAddresses": ["to@x.example"],
        "CcAddresses": ["cc@x.example"],
        "BccAddresses": ["bcc@x.example"],
    }
    assert b"bcc@x.example" not in taken.octets
    message = parse(taken.octets)
    assert (message.subject, message.html, message.to, message.cc) == (
        "Grüße",
        "<p>ä</p>",
        ("to@x.example",),
        ("cc@x.example",),
    )
    assert [(a.filename, base64.b64decode(a.content)) for a in message.attachments] == [("Übersicht.pdf", b"%PDF")]
    assert status(query, email_id) == "sent"
    ((kind, source, payload),) = events(query, email_id)
    assert (kind, source) == ("sent", f"provider-sent:{email_id}")
    assert payload == {"email_id": email_id, "provider": "ses", "message_id": taken.request["MessageId"]}
    assert query("SELECT webhook_id::text, status, attempt FROM webhook_deliveries") == [(webhook, "pending", 0)]
    assert query("SELECT sent_at IS NOT NULL, provider_next_retry_at FROM emails") == [(True, None)]


def test_the_domain_gives_region_and_configuration_set_and_sent_is_left_to_ses(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    query(
        "INSERT INTO domains (id, name, status, region, ses_configuration_set_name, user_id)"
        " VALUES (%s, 'bücher.example', 'verified', 'eu-west-1', 'the-set', 'user')",
        str(uuid.uuid4()),
    )
    email_id = add_email(**{"from": "a@xn--bcher-kva.example"})
    deliver(email_id, records_sent=False)
    (taken,) = ses.taken()
    assert taken.request["ConfigurationSetName"] == "the-set"
    assert status(query, email_id) == "sent"
    assert events(query, email_id) == []


def test_a_failure_of_this_mail_that_may_pass_is_tried_again_later(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    email_id = add_email()
    ses.answer({"status": 400, "code": "ANewException", "message": "not now"})
    deliver(email_id)
    row = query(
        "SELECT status, provider_retry_count, provider_last_error_code, provider_last_error_message,"
        " provider_next_retry_at - now() BETWEEN '2 s' AND '4 s' FROM emails"
    )
    assert row == [("queued", 1, "ANewException", "not now", True)]
    ((kind, source, payload),) = events(query, email_id)
    assert (kind, source) == ("delayed", f"provider-delayed:{email_id}:1")
    assert payload["reason"] == "provider_retry_scheduled"
    assert payload["last_error"] == {"code": "ANewException", "message": "not now"}
    deliver(email_id)  # not due yet
    assert ses.taken() == []


def test_the_last_attempt_is_final(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    email_id = add_email(provider_retry_count=2)
    ses.answer({"status": 400, "code": "ANewException", "message": "not now"})
    deliver(email_id)
    assert status(query, email_id) == "failed"
    assert query("SELECT provider_dead_lettered_at IS NOT NULL, provider_retry_count FROM emails") == [(True, 3)]
    ((kind, source, _),) = events(query, email_id)
    assert (kind, source) == ("failed", f"provider-dead-letter:{email_id}:3")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"status": 400, "code": "MessageRejected", "message": "Email address is not verified."}, "failed"),
        ({"status": 400, "code": "BadRequestException", "message": "malformed"}, "failed"),
        ({"status": 400, "code": "MailFromDomainNotVerifiedException", "message": "no"}, "failed"),
        ({"status": 400, "code": "MessageRejected", "message": "Sending paused for this account."}, "put back"),
        ({"status": 429, "code": "TooManyRequestsException", "message": "slower"}, "put back"),
        ({"status": 400, "code": "ThrottlingException", "message": "Daily message quota exceeded"}, "put back"),
        ({"status": 400, "code": "ThrottlingException", "message": "Maximum sending rate exceeded"}, "put back"),
        ({"status": 400, "code": "AccountSuspendedException", "message": "no"}, "put back"),
        ({"status": 400, "code": "SendingPausedException", "message": "no"}, "put back"),
        ({"status": 403, "code": "AccessDeniedException", "message": "ses:SendRawEmail"}, "put back"),
        ({"status": 403, "code": "ExpiredTokenException", "message": "no"}, "put back"),
        ({"status": 400, "code": "ANewException", "message": "no"}, "delayed"),
    ],
)
def test_what_a_failure_is_about_decides(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    pauses: list[float],
    answer: dict[str, Any],
    expected: str,
) -> None:
    email_id = add_email()
    ses.answer(answer)
    deliver(email_id)
    state = query("SELECT status, provider_retry_count, provider_next_retry_at IS NOT NULL FROM emails")
    if expected == "failed":
        assert state == [("failed", 1, False)]
    elif expected == "put back":
        assert state == [("queued", 0, True)]
        assert events(query, email_id) == []
        assert pauses
    else:
        assert state == [("queued", 1, True)]


def test_who_is_suppressed_by_now_is_left_out(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    email_id = add_email(to=["Gone@x.example", "here@x.example"])
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (%s, 'user', 'gone@x.example', 'bounced')",
        str(uuid.uuid4()),
    )
    deliver(email_id)
    (taken,) = ses.taken()
    assert taken.request["Destination"] == {"ToAddresses": ["here@x.example"]}
    assert {kind: source for kind, source, _ in events(query, email_id)} == {
        "suppressed": f"suppressed:{email_id}",
        "sent": f"provider-sent:{email_id}",
    }
    alone = add_email(to=["gone@x.example"])
    deliver(alone)
    assert status(query, alone) == "suppressed"
    assert len(ses.taken()) == 1


@pytest.mark.parametrize(
    "suppressed", ["gone@b\u00fccher.example", "gone@xn--bcher-kva.example", "gone@b\u00fccher.example."]
)
@pytest.mark.parametrize(
    "recipient", ["gone@b\u00fccher.example", "Gone@XN--BCHER-KVA.example", "gone@xn--bcher-kva.example."]
)
def test_who_is_suppressed_is_left_out_however_the_domain_is_spelled(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    recipient: str,
    suppressed: str,
) -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (%s, 'user', %s, 'bounced')",
        str(uuid.uuid4()),
        suppressed,
    )
    email_id = add_email(to=[recipient])
    deliver(email_id)
    assert ses.taken() == []
    assert status(query, email_id) == "suppressed"


@pytest.mark.parametrize(
    ("recipient", "last", "kinds"),
    [
        ("delivered+a@resend.dev", "delivered", {"sent", "delivered"}),
        ("Bounced@resend.dev", "bounced", {"sent", "bounced"}),
        ("complained@resend.dev", "complained", {"sent", "complained"}),
        ("suppressed@resend.dev", "suppressed", {"suppressed"}),
    ],
)
def test_addresses_for_tests_are_simulated(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    recipient: str,
    last: str,
    kinds: set[str],
) -> None:
    email_id = add_email(to=[recipient])
    deliver(email_id)
    assert ses.taken() == []
    assert status(query, email_id) == last
    assert {kind for kind, _, _ in events(query, email_id)} == kinds
    assert {source for _, source, _ in events(query, email_id)} == {f"sandbox:{kind}:{email_id}" for kind in kinds}
    suppressed = query("SELECT email, reason, source_message_id FROM email_suppressions")
    wanted = [(recipient.lower(), last, f"sandbox-{email_id}")] if last in ("bounced", "complained") else []
    assert suppressed == wanted


def test_a_mail_to_a_test_address_and_another_is_sent(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses
) -> None:
    deliver(add_email(to=["delivered@resend.dev", "to@x.example"]))
    deliver(add_email(to=["delivered@resend.dev", "bounced@resend.dev"]))
    assert len(ses.taken()) == 2


def test_a_row_is_claimed_once(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    for state in ("canceled", "cancelled", "sent", "delivered", "failed", "processing"):
        deliver(add_email(status=state))
    future = add_email(scheduled_at="2099-01-01T00:00:00Z", status="scheduled")
    deliver(future)
    assert ses.taken() == []
    due = add_email(scheduled_at="2020-01-01T00:00:00Z", status="scheduled")
    deliver(due)
    deliver(due)
    assert [taken.email_id for taken in ses.taken()] == [due]


def test_a_row_that_no_provider_takes_fails_with_a_cause(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    deliver(add_email(to=[f"a{n}@x.example" for n in range(51)]))
    deliver(add_email(attachments=[{"filename": "a.EXE", "content": "AAAA"}]))
    assert ses.taken() == []
    assert set(query("SELECT status, provider_last_error_code FROM emails")) == {
        ("failed", "TooManyRecipients"),
        ("failed", "RefusedExtension"),
    }


def test_an_attachment_is_fetched_from_its_path(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fetch itself is a double here: tests/unit/delivery/test_fetch.py has the real one."""
    asked: list[str] = []

    def answer(url: str, _most: int, write: Callable[[bytes], None], _outbound: Outbound) -> None:
        asked.append(url)
        if "down" in url:
            raise UnavailableError("HTTP503")
        write(b"fetched")

    monkeypatch.setattr("relay.delivery.large_mails.fetch", answer)
    deliver(add_email(attachments=[{"filename": "a.txt", "path": "https://files.example/a"}]))
    (taken,) = ses.taken()
    ((name, content),) = [(a.filename, base64.b64decode(a.content)) for a in parse(taken.octets).attachments]
    assert (name, content, asked) == ("a.txt", b"fetched", ["https://files.example/a"])
    later = add_email(attachments=[{"filename": "a.txt", "path": "https://files.example/down"}])
    deliver(later)
    row = query("SELECT status, provider_last_error_code FROM emails WHERE id = %s", later)
    assert row == [("queued", "AttachmentUnavailable")]


def test_a_bug_uses_up_the_attempts_of_its_mail_alone(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("relay.delivery.deliverer.leaving", broken)
        deliver(add_email())
        last = add_email(provider_retry_count=2)
        deliver(last)
    assert status(query, last) == "failed"
    assert set(query("SELECT provider_last_error_code FROM emails")) == {("InternalError",)}
    deliver(add_email())
    assert len(ses.taken()) == 1


def test_without_credentials_a_mail_waits_and_leaves_once_they_are_there(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A program that hangs, prints rubbish or is missing is no fault of the mail, and is asked again."""
    program = tmp_path / "credentials"
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    email_id = add_email()
    for number, content in enumerate((None, "#!/bin/sh\nexit 1\n", "#!/bin/sh\necho rubbish\n"), start=1):
        if content is not None:
            program.write_text(content)
            program.chmod(0o755)
        deliver(email_id)
        assert query("SELECT status, provider_retry_count FROM emails") == [("queued", 0)]
        assert len(pauses) == number
        query("UPDATE emails SET provider_next_retry_at = NULL")
    keys = '{"Version": 1, "AccessKeyId": "test", "SecretAccessKey": "test"}'
    program.write_text(f"#!/bin/sh\necho '{keys}'\n")
    deliver(email_id)
    assert status(query, email_id) == "sent"
