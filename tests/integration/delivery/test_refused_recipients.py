"""Mails that a smart host takes for some of their recipients: each gets it once, or is named by an event."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from config.settings import Settings
from relay.delivery.deliverer import Deliverer
from relay.delivery.row import email_of
from relay.delivery.smart_host import SmartHost
from relay.delivery.smtp_provider import SmtpProvider
from relay.postgres.outgoing import Outgoing
from tests.support.smtp_double import SmtpDouble

Query = Callable[..., list[tuple[Any, ...]]]
Deliver = Callable[[str], None]

GOOD, BAD, LATER, TROUBLE = "250 2.1.5 Ok", "550 5.1.1 nobody there", "450 4.2.1 not now", "451 4.3.0 trouble"


@pytest.fixture
def double() -> Iterator[SmtpDouble]:
    with SmtpDouble(answers={}) as double:
        yield double


@pytest.fixture
def deliver(
    outgoing: Outgoing, new_deliverer: Callable[..., Deliverer], double: SmtpDouble, query: Query
) -> Iterator[Deliver]:
    settings = Settings(
        database_url="postgres://",
        smarthost_host="127.0.0.1",
        smarthost_port=double.port,
        smarthost_tls="none",
        smarthost_user="ann",
        smarthost_password="the password",
    )
    provider = SmtpProvider(SmartHost(settings), connections=5)

    def run(email_id: str) -> None:
        """Tries until the row is at its end, each time by a worker that knows nothing of other mails."""
        for _ in range(10):
            deliverer = new_deliverer(provider)
            query("UPDATE emails SET provider_next_retry_at = NULL WHERE id = %s", email_id)
            for row in outgoing.claim([email_id]):
                deliverer.deliver(email_of(row))
            if status(query, email_id) != "queued":
                return

    yield run
    provider.close()


def answers(double: SmtpDouble, replies: dict[str, list[str]]) -> None:
    double.answers = {address: list(each) for address, each in replies.items()}


def status(query: Query, email_id: str) -> str:
    return str(query("SELECT status FROM emails WHERE id = %s", email_id)[0][0])


def events(query: Query, email_id: str) -> list[tuple[str, dict[str, Any]]]:
    return query("SELECT type, payload FROM email_events WHERE email_id = %s ORDER BY received_at, type", email_id)


def bounced(query: Query, email_id: str) -> dict[str, tuple[str, str, str]]:
    """Who is named by events `bounced` → of which type, status and cause."""
    found = [payload for kind, payload in events(query, email_id) if kind == "bounced"]
    entries = [(payload["bounceType"], entry) for payload in found for entry in payload["bouncedRecipients"]]
    assert len({entry["emailAddress"] for _, entry in entries}) == len(entries)
    return {entry["emailAddress"]: (kind, entry["status"], entry["diagnosticCode"]) for kind, entry in entries}


def test_one_is_refused_and_the_others_get_it(
    add_email: Callable[..., str], deliver: Deliver, double: SmtpDouble, query: Query
) -> None:
    answers(double, {"b@x.example": [BAD]})
    email_id = add_email(to=["a@x.example", "b@x.example"], bcc=["c@x.example"])
    deliver(email_id)
    assert [taken.recipients for taken in double.taken] == [("a@x.example", "c@x.example")]
    assert status(query, email_id) == "bounced"
    assert query("SELECT sent_at IS NOT NULL, provider_retry_count FROM emails") == [(True, 0)]
    assert [kind for kind, _ in events(query, email_id)] == ["bounced", "sent"]
    assert bounced(query, email_id) == {
        "b@x.example": ("Permanent", "5.1.1", "smtp; 550 5.1.1 nobody there"),
    }
    assert query("SELECT count(*) FROM email_suppressions") == [(0,)]


def test_one_that_is_put_off_is_tried_again_alone_with_the_same_header(
    add_email: Callable[..., str], deliver: Deliver, double: SmtpDouble, query: Query
) -> None:
    answers(double, {"b@x.example": [LATER]})
    email_id = add_email(to=["a@x.example", "b@x.example"])
    deliver(email_id)
    assert [taken.recipients for taken in double.taken] == [("a@x.example",), ("b@x.example",)]
    assert double.taken[0].octets == double.taken[1].octets
    assert status(query, email_id) == "sent"
    kinds = [kind for kind, _ in events(query, email_id)]
    assert kinds == ["delayed", "sent"]


def test_who_is_put_off_until_the_last_attempt_is_named(
    add_email: Callable[..., str], deliver: Deliver, double: SmtpDouble, query: Query
) -> None:
    answers(double, {"b@x.example": [LATER] * 9, "c@x.example": [BAD]})
    email_id = add_email(to=["a@x.example", "b@x.example", "c@x.example"])
    deliver(email_id)
    assert [taken.recipients for taken in double.taken] == [("a@x.example",)]
    assert status(query, email_id) == "bounced"
    assert {address: kind for address, (kind, _, _) in bounced(query, email_id).items()} == {
        "b@x.example": "Transient",
        "c@x.example": "Permanent",
    }


def test_who_is_suppressed_since_does_not_get_it(
    add_email: Callable[..., str], outgoing: Outgoing, deliver: Deliver, double: SmtpDouble, query: Query
) -> None:
    answers(double, {"b@x.example": [LATER]})
    query(
        "CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
        " VALUES (gen_random_uuid(), 'user', 'b@x.example', 'manual', now(), now()) ON CONFLICT DO NOTHING;"
        " RETURN NEW; END $$;"
        " CREATE TRIGGER later AFTER INSERT ON email_events FOR EACH ROW WHEN (NEW.type = 'delayed')"
        " EXECUTE FUNCTION suppress()"
    )
    email_id = add_email(to=["a@x.example", "b@x.example"])
    deliver(email_id)
    assert [taken.recipients for taken in double.taken] == [("a@x.example",)]
    assert status(query, email_id) == "sent"


def test_whatever_a_host_says_to_whom_each_gets_it_once_or_is_named(
    add_email: Callable[..., str], deliver: Deliver, double: SmtpDouble, query: Query
) -> None:
    """Replies to each recipient at each attempt, and to some whole mails, by chance; the ledger of the host decides."""
    chance = random.Random(16)
    ends: Counter[str] = Counter()
    for number in range(25):
        people = [f"p{each}@x{number}.example" for each in range(chance.randint(1, 5))]
        answers(double, {each: [chance.choice([GOOD, GOOD, BAD, LATER, TROUBLE]) for _ in range(4)] for each in people})
        third = len(people) // 3
        email_id = add_email(to=people[third:], cc=people[:third])
        before = len(double.taken)
        deliver(email_id)
        got = Counter(address for taken in double.taken[before:] for address in taken.recipients)
        named, end = bounced(query, email_id), status(query, email_id)
        said = json.dumps([end, got, named, events(query, email_id)])
        assert set(got.values()) <= {1}, said
        assert not set(got) & set(named), said
        match end:
            case "sent":
                assert (set(got), named) == (set(people), {}), said
            case "bounced":
                assert set(got) | set(named) == set(people), said
                assert got, said
                assert named, said
            case _:
                assert (end, got, named) == ("failed", {}, {}), said
        kinds = [kind for kind, _ in events(query, email_id)]
        assert kinds.count("sent") == (end != "failed"), said
        assert kinds.count("failed") == (end == "failed"), said
        ends[end] += 1
    assert min(ends[end] for end in ("sent", "bounced", "failed")) >= 3
