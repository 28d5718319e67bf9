"""Rows that only an enemy writes, and answers that only an enemy gives: each ends, and none goes round for ever."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relay.delivery.deliverer import Deliverer
from relay.delivery.outcome import Failed, Outcome, RefusedRecipient, Sent, Verdict
from relay.delivery.provider import Handover
from relay.delivery.row import email_of
from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.waiting import PLANNER, WaitingRows
from scripts.services import Ses

Query = Callable[..., list[tuple[Any, ...]]]
Fixture = Callable[..., Any]

#: Texts that a driver, a database or a reader of JSON may stumble over.
TEXTS = (
    "a\0b",
    "\\u0000",
    "\\\\u0000",
    "\\u0000\0\\",
    "\\ud800",
    "\x01\x7f\x9f",
    "\u2028\ufeff\U0001f600",
    "%s %(id)s {} '\";--",
    "x" * 5000,
    "",
    " ",
)
#: JSON that has no place where it stands.
VALUES: tuple[Any, ...] = (
    None,
    True,
    7,
    -1.5,
    10**30,
    "text",
    {},
    {"a": [1]},
    [],
    [[]],
    [None, 3, {}, ["a@x.example"]],
    *([text.replace("\0", "")] for text in TEXTS),
    *([f"{text}@x.example".replace("\0", "")] for text in TEXTS),
    *({"X-Odd": text.replace("\0", ""), text.replace("\0", "") or "e": "v"} for text in TEXTS),
    [{"filename": text.replace("\0", ""), "content": text.replace("\0", "")} for text in TEXTS],
    [{"filename": "a.txt", "content": 7}, {"filename": 7}, 7, {"filename": "b", "path": ["x"]}],
    [{"filename": "a.txt", "content": "QQ==", "content_type": text.replace("\0", "")} for text in TEXTS],
)
#: Recipients whose mail is simulated.
SIMULATED = tuple(
    f"{word}+{text}@resend.dev".replace("\0", "") for word in ("delivered", "bounced", "complained") for text in TEXTS
)
ENDS = {"sent", "delivered", "bounced", "complained", "failed", "suppressed"}


class Enemy:
    """A provider that says what it likes; not over a network, since what it says is the point."""

    name = "ses"
    region = None

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.taken: list[str] = []

    def send(self, handover: Handover) -> Outcome:
        """As `relay.delivery.provider.Provider` says, but for what it says."""
        chance = self._chance
        first, second = chance.choice(TEXTS), chance.choice(TEXTS)
        match chance.randrange(5):
            case 0:
                return Failed(chance.choice((Verdict.PASSING, Verdict.PERMANENT)), first, second)
            case 1:
                return Failed(Verdict.NOT_THIS_MAIL, first, second, kind="unreachable")
            case 2:
                raise ValueError(first)
            case 3:
                self.taken.append(handover.email_id)
                refused = [RefusedRecipient(handover.recipients[0], passing=False, code=first, message=second)]
                return Sent(first, refused=refused if len(handover.recipients) > 1 else ())
            case _:
                self.taken.append(handover.email_id)
                return Sent(first)

    def account(self, region: str) -> None:
        """Never asked."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def waiting(postgres_url: str) -> Iterator[WaitingRows]:
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=2, switched_off=PLANNER)
    yield WaitingRows(database)
    database.close()


def hostile_row(chance: random.Random) -> dict[str, Any]:
    """Columns of a row, some of them as REST would never write them."""
    columns = {
        column: json.dumps(chance.choice(VALUES))
        for column in ("to", "cc", "bcc", "reply_to", "headers", "attachments", "tags")
        if chance.random() < 0.3
    }
    if chance.random() < 0.3:
        columns |= {"to": json.dumps(chance.sample(SIMULATED, 2)), "cc": "null", "bcc": json.dumps(7)}
    if chance.random() < 0.2:
        columns |= {"to": json.dumps(chance.choice(VALUES)), "cc": json.dumps([chance.choice(SIMULATED)])}
    for column in ("subject", "html", "text", "from"):
        if chance.random() < 0.2:
            columns[column] = chance.choice(TEXTS).replace("\0", "")[:512]
    return columns


@pytest.mark.parametrize("seed", range(2))
def test_every_row_ends_whatever_it_holds_and_whatever_is_said_of_it(
    add_email: Fixture,
    new_deliverer: Callable[..., Deliverer],
    outgoing: Outgoing,
    query: Query,
    seed: int,
) -> None:
    chance = random.Random(seed)
    enemy = Enemy(chance)
    ids = [add_email(**hostile_row(chance)) for _ in range(30)]
    open_ids = set(ids)
    for _ in range(40):
        query("UPDATE emails SET provider_next_retry_at = NULL WHERE status = 'queued'")
        # Made anew: a region's rest is not what this is about.
        deliverer = new_deliverer(enemy)
        for row in outgoing.claim(sorted(open_ids)):
            deliverer.deliver(email_of(row))
        rows = query("SELECT id::text, status, provider_retry_count FROM emails WHERE id = ANY (%s::uuid[])", ids)
        assert all(status in ENDS | {"queued"} and attempts <= 3 for _, status, attempts in rows), rows
        open_ids = {email_id for email_id, status, _ in rows if status == "queued"}
        if not open_ids:
            break
    assert not open_ids
    # What is sent is said so, once, and as it is.
    sent = [email_id for email_id, status, _ in rows if status == "sent"]
    assert set(sent) <= set(enemy.taken)
    found = query("SELECT email_id::text FROM email_events WHERE type = 'sent' AND email_id = ANY (%s::uuid[])", sent)
    assert sorted(found) == sorted((email_id,) for email_id in sent)


def test_a_bug_uses_up_an_attempt_and_what_the_provider_may_have_is_unclear(
    add_email: Fixture, new_deliverer: Callable[..., Deliverer], outgoing: Outgoing, query: Query
) -> None:
    """Before the call nothing is unclear; from the call on it is."""
    enemy = Enemy(random.Random(0))

    def broken(*_: Any) -> Any:
        raise KeyError("bug")

    found = []
    for place in ("facts", "send"):
        email_id = add_email()
        deliverer = new_deliverer(enemy)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(*((outgoing, "facts") if place == "facts" else (enemy, "send")), broken)
            for row in outgoing.claim([email_id]):
                deliverer.deliver(email_of(row))
        found += query(
            "SELECT status, provider_retry_count, provider_last_error_code FROM emails WHERE id = %s", email_id
        )
    assert found == [("queued", 1, "InternalError"), ("queued", 1, "DeliveryUnclear")]


def test_a_row_to_thousands_fails_before_they_are_looked_up(
    add_email: Fixture,
    new_deliverer: Callable[..., Deliverer],
    outgoing: Outgoing,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each address takes CPU and a place in a statement of all that are looked up at the time."""
    asked: list[object] = []
    monkeypatch.setattr(outgoing, "facts", asked.append)
    email_id = add_email(to=[f"ä{number}@ü.example" for number in range(8000)])
    for row in outgoing.claim([email_id]):
        new_deliverer(Enemy(random.Random(0))).deliver(email_of(row))
    assert query("SELECT status, provider_last_error_code FROM emails") == [("failed", "TooManyRecipients")]
    assert asked == []


@pytest.mark.parametrize("moment", ["'infinity'", "'-infinity'", "now() + interval '1 year'", "'290000-01-01'"])
def test_a_time_that_says_nothing_hides_no_claim_from_a_scan(
    add_email: Fixture, outgoing: Outgoing, waiting: WaitingRows, query: Query, moment: str
) -> None:
    """The server's clock was put back, or another program wrote it: the row's version tells how old the claim is."""
    odd, usual = add_email(), add_email()
    assert len(outgoing.claim([odd, usual])) == 2
    query(f"UPDATE emails SET provider_last_attempted_at = {moment} WHERE id = %s", odd)
    found = {row.email_id: row for row in waiting.processing(10)}
    assert found.keys() == {odd, usual}
    assert found[usual].ours
    assert not found[usual].expired
    assert not found[odd].ours or found[odd].expired


def test_what_is_said_with_nul_is_recorded_without(
    add_email: Fixture, deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    add_email(id="0e0f7a3c-7d39-4c6e-9b3f-1a2b3c4d5e6f")
    ses.answer({"status": 400, "code": "MessageRejected", "message": "no\0 \\u0000 address"})
    deliver("0e0f7a3c-7d39-4c6e-9b3f-1a2b3c4d5e6f")
    code, text, event = query(
        "SELECT provider_last_error_code, provider_last_error_message, payload -> 'last_error'"
        " FROM emails JOIN email_events ON email_id = emails.id"
    )[0]
    assert (code, text) == ("MessageRejected", "no \\u0000 address")
    assert event == {"code": code, "message": text}
