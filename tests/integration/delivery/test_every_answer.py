"""Every answer of SES, every 5xx and every kind of silence, by HTTP from the double: what becomes of the row."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.delivery.deliverer import Deliverer
from relay.delivery.row import email_of
from relay.delivery.ses_provider import SesProvider
from relay.postgres.outgoing import Outgoing
from scripts.services import Ses, free_port

Query = Callable[..., list[tuple[Any, ...]]]
Deliver = Callable[[str], None]

#: UNSURE: it waits, and before it is sent again events are asked whether the provider has it.
FAILED, DELAYED, WAITS, UNSURE, SENT = "failed", "delayed", "waits", "unsure", "sent"


def error(status: int, code: str, message: str = "") -> dict[str, Any]:
    return {"status": status, "code": code, "message": message}


def raw(*lines: str) -> dict[str, Any]:
    return {"raw": "\r\n".join(lines)}


#: The answer; what becomes of a mail that is alone; what becomes of it where another has just passed.
ANSWERS = {
    "throttled": (error(429, "TooManyRequestsException", "slower"), WAITS, WAITS),
    "rate": (error(400, "ThrottlingException", "Maximum sending rate exceeded."), WAITS, WAITS),
    "daily quota": (error(400, "ThrottlingException", "Daily message quota exceeded."), WAITS, WAITS),
    "limit": (error(400, "LimitExceededException"), WAITS, WAITS),
    "suspended": (error(400, "AccountSuspendedException"), WAITS, WAITS),
    "paused": (error(400, "SendingPausedException"), WAITS, WAITS),
    "paused, by text": (error(400, "MessageRejected", "Sending paused for this account."), WAITS, WAITS),
    "denied": (error(403, "AccessDeniedException", "not authorized to perform: ses:SendRawEmail"), WAITS, WAITS),
    "token": (error(403, "ExpiredTokenException"), WAITS, WAITS),
    "signature": (error(403, "InvalidSignatureException"), WAITS, WAITS),
    "no such set": (error(404, "NotFoundException", "Configuration set <x> does not exist."), WAITS, WAITS),
    "not verified": (error(400, "MessageRejected", "Email address is not verified."), FAILED, FAILED),
    "MAIL FROM": (error(400, "MailFromDomainNotVerifiedException"), FAILED, FAILED),
    "malformed": (error(400, "BadRequestException", "Duplicate header 'Subject'."), FAILED, FAILED),
    "unknown": (error(400, "ANewException"), DELAYED, DELAYED),
    **{f"{status}": (error(status, "InternalFailure"), WAITS, DELAYED) for status in (500, 503, 599)},
    **{f"{status}": (error(status, "InternalFailure"), UNSURE, DELAYED) for status in (502, 504)},
    "no word": ({"silent": True}, UNSURE, DELAYED),
    "taken, and no word": ({"lost": True}, UNSURE, DELAYED),
    "too late": ({"seconds": 3}, UNSURE, DELAYED),
    "half a status line": (raw("HTTP/1.1 2"), UNSURE, DELAYED),
    "half a header": (raw("HTTP/1.1 200 OK", "Content-Le"), UNSURE, DELAYED),
    "half a body": (raw("HTTP/1.1 200 OK", "Content-Length: 90", "", '{"MessageId": "0'), UNSURE, DELAYED),
    "no JSON": (raw("HTTP/1.1 200 OK", "Content-Length: 6", "", "<html>"), UNSURE, DELAYED),
    "no MessageId": (raw("HTTP/1.1 200 OK", "Content-Length: 2", "", "{}"), UNSURE, DELAYED),
    "a MessageId that is none": (raw("HTTP/1.1 200 OK", "Content-Length: 16", "", '{"MessageId": 1}'), UNSURE, DELAYED),
    "rubbish": (raw("rubbish", "", ""), UNSURE, DELAYED),
    "somebody else": (raw("HTTP/1.1 302 Found", "Location: /", "Content-Length: 0", "", ""), WAITS, WAITS),
    "a proxy": (raw("HTTP/1.1 407 No", "Content-Length: 0", "", ""), WAITS, WAITS),
    "as usual": ({}, SENT, SENT),
}


@pytest.fixture
def new_worker(
    outgoing: Outgoing, new_deliverer: Callable[..., Deliverer], ses: Ses, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Deliver]]:
    """A function that makes deliverers that know nothing of each other; SES has a second for an answer."""
    monkeypatch.setattr("relay.aws.ses._CALL_SECONDS", 1.0)
    provider = SesProvider()

    def make() -> Deliver:
        deliverer = new_deliverer(provider, records_sent=lambda _: False)

        def deliver(email_id: str) -> None:
            for row in outgoing.claim([email_id]):
                deliverer.deliver(email_of(row))

        return deliver

    yield make
    provider.close()


@pytest.fixture
def deliver(new_worker: Callable[[], Deliver]) -> Deliver:
    return new_worker()


@pytest.mark.parametrize("witnessed", [False, True], ids=["alone", "another passed"])
def test_what_becomes_of_the_row(
    add_email: Callable[..., str], new_worker: Callable[[], Deliver], ses: Ses, query: Query, witnessed: bool
) -> None:
    wrong = {}
    for name, (answer, alone, beside) in ANSWERS.items():
        deliver = new_worker()
        if witnessed:
            deliver(add_email())
        email_id = add_email()
        ses.answer(answer)
        deliver(email_id)
        wanted = {
            FAILED: ("failed", 1, False, True, ["failed"]),
            DELAYED: ("queued", 1, True, True, ["delayed"]),
            WAITS: ("queued", 0, True, False, []),
            UNSURE: ("queued", 0, True, True, []),
            SENT: ("sent", 0, False, False, []),
        }[beside if witnessed else alone]
        ((status, attempts, waits, code),) = query(
            "SELECT status, provider_retry_count, provider_next_retry_at > now(), provider_last_error_code"
            " FROM emails WHERE id = %s",
            email_id,
        )
        events = [kind for (kind,) in query("SELECT type FROM email_events WHERE email_id = %s", email_id)]
        found = (status, attempts, bool(waits), bool(code), events)
        if found != wanted:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("kind", ["nobody listens", "no such name", "no connection in time"])
def test_without_a_connection_it_is_never_the_mail(
    add_email: Callable[..., str],
    deliver: Deliver,
    ses: Ses,
    query: Query,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.aws.ses._CONNECT_SECONDS", 0.5)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = {
            "nobody listens": f"127.0.0.1:{free_port()}",
            "no such name": "no-such-host.invalid",
            "no connection in time": f"127.0.0.1:{full.getsockname()[1]}",
        }[kind]
        held = [socket.socket() for _ in range(4)]
        for each in held:  # the kernel's queue of the listener is full
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", f"http://{address}")
        email_id = add_email()
        deliver(email_id)
        for each in held:
            each.close()
    assert query("SELECT status, provider_retry_count FROM emails") == [("queued", 0)]
    assert query("SELECT count(*) FROM email_events") == [(0,)]


def test_while_a_region_rests_its_mail_waits_and_is_not_sent(
    add_email: Callable[..., str], deliver: Deliver, ses: Ses, query: Query
) -> None:
    ses.answer(error(400, "SendingPausedException"), {})
    first, second = add_email(), add_email()
    deliver(first)
    deliver(second)
    assert ses.taken() == []
    assert (
        query("SELECT status, provider_retry_count, provider_next_retry_at > now() + interval '30 s' FROM emails")
        == [("queued", 0, True)] * 2
    )
    assert query("SELECT count(*) FROM email_events") == [(0,)]


def test_a_missing_right_is_named_in_the_log(
    add_email: Callable[..., str], deliver: Deliver, ses: Ses, capsys: pytest.CaptureFixture[str]
) -> None:
    ses.answer(
        error(403, "AccessDeniedException", "User: ann@x.example may not: not authorized to perform: ses:SendEmail")
    )
    deliver(add_email())
    out = capsys.readouterr().out
    assert "region_paused" in out
    assert "action=ses:SendEmail" in out.replace("\x1b[0m", "").replace("\x1b[35m", "").replace("\x1b[36m", "")
    assert "x.example" not in out


def test_a_call_on_the_way_leaves_no_mail_once_the_double_has_forgotten(
    add_email: Callable[..., str], deliver: Deliver, ses: Ses
) -> None:
    """Else a test would find the mails of one before it, whose clients had waited long enough."""
    ses.answer({"seconds": 1.5})
    deliver(add_email())
    ses.forget()
    time.sleep(1.0)
    assert ses.taken() == []
