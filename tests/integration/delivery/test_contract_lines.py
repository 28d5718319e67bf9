"""Lines of the contract's sections 5 to 7 that say exactly what is: each is asked for all of its cases."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from relay.delivery.deliverer import Deliverer
from relay.delivery.outcome import Failed, Outcome, Sent, Verdict
from relay.delivery.provider import Handover
from relay.delivery.row import email_of
from relay.mail import parse
from relay.postgres.outgoing import Outgoing
from scripts.services import Ses

Query = Callable[..., list[tuple[Any, ...]]]
Fixture = Callable[..., Any]
STATUSES = (
    *("queued", "scheduled", "processing", "sent", "delivered", "bounced", "complained", "suppressed", "failed"),
    *("canceled", "cancelled"),
)
PAST, FUTURE = "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"


class Noting:
    """Notes what it is given; a stand-in, since the double of SES is not told the region."""

    name = "ses"
    region = None

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self.handovers: list[Handover] = []

    def send(self, handover: Handover) -> Outcome:
        """As `relay.delivery.provider.Provider` says."""
        self.handovers.append(handover)
        return self._outcome

    def account(self, region: str) -> None:
        """Never asked."""

    def close(self) -> None:
        """Nothing is open."""


def test_a_claim_takes_what_is_queued_or_scheduled_and_due_and_nothing_else(
    add_email: Fixture, outgoing: Outgoing
) -> None:
    wanted = set()
    ids = []
    for status, scheduled, again in product(STATUSES, (None, PAST, FUTURE), (None, PAST, FUTURE)):
        ids.append(add_email(status=status, scheduled_at=scheduled, provider_next_retry_at=again))
        due = FUTURE not in (scheduled, again)
        if due and (status == "queued" or (status == "scheduled" and scheduled == PAST)):
            wanted.add(ids[-1])
    assert {str(row[0]) for row in outgoing.claim(ids)} == wanted
    assert outgoing.claim(ids) == []


def test_ses_gets_what_the_contract_has_and_nothing_else(
    add_email: Fixture, deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    query(
        "INSERT INTO domains (id, name, status, region, ses_configuration_set_name, user_id)"
        " VALUES (%s, 'Example.COM', 'failed', 'us-east-1', 'the-set', 'user')",
        str(uuid.uuid4()),
    )
    email_id = add_email(
        **{"from": "Ann <ann@EXAMPLE.com>"},
        reply_to=["Bob <bob@x.example>"],
        tags=[{"name": "campaign", "value": "one"}],
        headers={"x-entity-id": "another", "X-Kept": "yes"},
    )
    deliver(email_id)
    (taken,) = ses.taken()
    assert taken.request.keys() - {"MessageId"} <= {"Content", "Destination", "EmailTags", "ConfigurationSetName"}
    assert taken.request["EmailTags"] == [{"Name": "X-Entity-ID", "Value": email_id}]
    assert taken.request["ConfigurationSetName"] == "the-set"
    assert taken.octets.lower().count(b"x-entity-id:") == 1
    message = parse(taken.octets)
    assert f"x-entity-id: {email_id}".encode() in taken.octets.lower()
    assert message.headers["X-Kept"] == "yes"
    assert b"\r\nReply-To: Bob <bob@x.example>\r\n" in taken.octets


def test_a_domain_counts_for_its_user_alone_whatever_its_status_is(
    add_email: Fixture, new_deliverer: Callable[..., Deliverer], outgoing: Outgoing, query: Query
) -> None:
    """Otherwise one user's mail would leave by another's region and configuration set."""
    for number, status in enumerate(("pending", "verified", "failed", "")):
        query(
            "INSERT INTO domains (id, name, status, region, ses_configuration_set_name, user_id, created_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, now() - interval '1 year')",
            *(str(uuid.uuid4()), f"d{number}.example", status, f"eu-west-{number}", f"set {number}", f"user {number}"),
        )
    noting = Noting(Sent("id"))
    deliverer = new_deliverer(noting)
    for number, owner in product(range(4), range(4)):
        email_id = add_email(**{"from": f"a@D{number}.example"}, user_id=f"user {owner}")
        for row in outgoing.claim([email_id]):
            deliverer.deliver(email_of(row))
        given = noting.handovers.pop()
        found = (given.region, given.configuration_set)
        assert found == ((f"eu-west-{number}", f"set {number}") if number == owner else ("us-east-1", None))


def test_attempts_come_later_each_time_and_say_so(
    add_email: Fixture, new_deliverer: Callable[..., Deliverer], outgoing: Outgoing, query: Query
) -> None:
    deliverer = new_deliverer(Noting(Failed(Verdict.PASSING, "ANewException", "x" * 1200)), max_attempts=9)
    email_id = add_email()
    for attempt in range(1, 9):
        for row in outgoing.claim([email_id]):
            deliverer.deliver(email_of(row))
        seconds = min(900, 2 ** min(attempt + 1, 6))
        ((status, count, code, length, wait, said),) = query(
            "SELECT status, provider_retry_count, provider_last_error_code, length(provider_last_error_message),"
            " extract(epoch FROM provider_next_retry_at - provider_last_attempted_at)::float8,"
            " (SELECT payload FROM email_events WHERE source_id = %s) FROM emails",
            f"provider-delayed:{email_id}:{attempt}",
        )
        assert (status, count, code, length, wait) == ("queued", attempt, "ANewException", 1000, seconds)
        assert said.pop("next_retry_at").endswith("Z")
        assert said == {
            "email_id": email_id,
            "reason": "provider_retry_scheduled",
            "provider": "ses",
            "attempt_count": attempt,
            "last_error": {"code": "ANewException", "message": "x" * 1000},
        }
        query("UPDATE emails SET provider_next_retry_at = now()")
    for row in outgoing.claim([email_id]):
        deliverer.deliver(email_of(row))
    ((status, dead, again, said),) = query(
        "SELECT status, provider_dead_lettered_at IS NOT NULL, provider_next_retry_at, payload FROM emails"
        " JOIN email_events ON source_id = %s",
        f"provider-dead-letter:{email_id}:9",
    )
    assert (status, dead, again) == ("failed", True, None)
    assert said == {
        "reason": "provider_retries_exhausted",
        "provider": "ses",
        "attempt_count": 9,
        "last_error": {"code": "ANewException", "message": "x" * 1000},
    }


def test_success_clears_what_failures_left(add_email: Fixture, deliver: Callable[..., None], query: Query) -> None:
    deliver(add_email(provider_next_retry_at=PAST, provider_dead_lettered_at=PAST, provider_retry_count=2))
    assert query(
        "SELECT status, sent_at IS NOT NULL, provider_next_retry_at, provider_dead_lettered_at FROM emails"
    ) == [("sent", True, None, None)]


@pytest.mark.parametrize(
    ("to", "cc", "bcc", "simulated"),
    [
        (["delivered@resend.dev"], ["Delivered+x@RESEND.dev"], ["DELIVERED+a+b@resend.dev"], True),
        (["delivered@resend.dev"], ["bounced@resend.dev"], [], False),
        (["bounced@resend.dev"], [], ["to@x.example"], False),
        (["suppressed+label@resend.dev"], [], [], False),
        (["opened@resend.dev"], [], [], False),
        (["delivered@mail.resend.dev"], [], [], False),
        (["delivered@resend.dev.x.example"], [], [], False),
    ],
)
def test_a_mail_is_simulated_where_all_recipients_name_one_outcome(
    add_email: Fixture,
    deliver: Callable[..., None],
    ses: Ses,
    to: list[str],
    cc: list[str],
    bcc: list[str],
    simulated: bool,
) -> None:
    deliver(add_email(to=to, cc=cc, bcc=bcc))
    assert len(ses.taken()) == (not simulated)


def test_what_a_simulation_says(add_email: Fixture, deliver: Callable[..., None], query: Query) -> None:
    """Payloads to the letter; To alone is named and suppressed."""
    base = {"sandbox": True, "provider": "opensend-sandbox"}
    for word in ("delivered", "bounced", "complained", "suppressed"):
        label = "" if word == "suppressed" else "+A"
        to, cc = [f"{word}{label}@resend.dev"], [f"{word}@resend.dev"]
        email_id = add_email(to=to, cc=cc)
        deliver(email_id)
        said = dict(query("SELECT source_id, payload FROM email_events WHERE email_id = %s", email_id))
        if word == "delivered":
            assert said[f"sandbox:{word}:{email_id}"]["delivery"].pop("timestamp").endswith("Z")
        last: dict[str, Any] = {
            "delivered": {"delivery": {"recipients": to}},
            "bounced": {
                "bounceType": "Permanent",
                "bouncedRecipients": [
                    {
                        "emailAddress": to[0],
                        "diagnosticCode": "smtp; 550 5.1.1 (Unknown User)",
                        "status": "5.1.1",
                    }
                ],
            },
            "complained": {"complainedRecipients": [{"emailAddress": to[0]}]},
            "suppressed": {"recipients": to, "reason": "recipient_suppressed"},
        }[word]
        first = {} if word == "suppressed" else {f"sandbox:sent:{email_id}": base | {"recipients": to}}
        assert said == first | {f"sandbox:{word}:{email_id}": base | last}
        found = query(
            "SELECT email, reason, source_event_id, source_message_id, metadata FROM email_suppressions"
            " WHERE source_email_id = %s",
            email_id,
        )
        source, message_id = f"sandbox:{word}:{email_id}", f"sandbox-{email_id}"
        metadata = {"source": "ses", "sourceEventId": source, "sourceEmailId": email_id, "sourceMessageId": message_id}
        suppressed = [(to[0].lower(), word, source, message_id, metadata)] if word in ("bounced", "complained") else []
        assert found == suppressed


def test_success_moves_a_status_forward_alone(add_email: Fixture, outgoing: Outgoing, query: Query) -> None:
    """A Delivery or a Bounce may have come first; what was canceled meanwhile stays so."""
    ids = {status: add_email(status=status) for status in STATUSES}
    for email_id in ids.values():
        outgoing.sent(email_id, None)
    found = dict(query("SELECT id::text, status FROM emails"))
    moved = {status: found[email_id] for status, email_id in ids.items() if found[email_id] != status}
    assert moved == {"processing": "sent", "queued": "sent"}
