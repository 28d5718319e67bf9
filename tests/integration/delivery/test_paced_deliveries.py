"""Deliveries with a pace: rows in Postgres, permits in Valkey, SES's double with its ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from relay.aws.ses import SesError
from relay.aws.ses_account import SesAccount
from relay.core.errors import TooLate
from relay.delivery.account import UNTOLD, Account
from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import Handovers
from relay.delivery.large_mails import Busy
from relay.delivery.pace import Pace
from relay.delivery.paced_account import PacedAccount
from relay.delivery.permit import Permit, Rest
from relay.delivery.regions import Regions
from relay.delivery.row import email_of
from relay.delivery.ses_provider import SesProvider
from relay.postgres import leases
from relay.postgres.outgoing import Outgoing
from relay.redis.claim_states import HANDING_OVER
from relay.redis.link import RedisLink
from scripts.services import Ses
from tests.support.scripted_provider import Scripted

Query = Callable[..., list[tuple[Any, ...]]]
AddEmail = Callable[..., str]
Deliver = Callable[..., None]
DENIED = {"status": 403, "code": "AccessDeniedException"}
PAUSED = {"status": 400, "code": "SendingPausedException", "message": "Sending is paused."}
QUOTA = {"status": 400, "code": "ThrottlingException", "message": "Daily message quota exceeded."}
KEY = {"status": 403, "code": "InvalidClientTokenId", "message": "The security token is invalid."}
CLOCK = {"status": 403, "code": "InvalidSignatureException", "message": "Signature expired: 2026 is now earlier than …"}


@pytest.fixture
def worker(
    outgoing: Outgoing, new_deliverer: Callable[..., Deliverer], ses: Ses, redis_url: str
) -> Iterator[Callable[[], Deliver]]:
    """Makes a worker: claims rows, and delivers them all at once."""
    closed: list[Any] = []

    def make() -> Deliver:
        provider = SesProvider()
        link = RedisLink(redis_url, verify_tls=True, timeout=1.0, pause=0.1)
        pace = Pace(link, "ses", provider.account, fallback=200.0, shares=1)
        closed.extend((provider, link))
        deliverer = new_deliverer(provider, records_sent=lambda _: False, pace=pace)

        def deliver(*ids: str) -> None:
            rows = outgoing.claim(ids)
            gevent.joinall([gevent.spawn(deliverer.deliver, email_of(row)) for row in rows], raise_error=True)

        return deliver

    yield make
    for each in closed:
        each.close()


def test_throttled_mails_wait_and_use_up_no_attempt(
    worker: Callable[[], Deliver], ses: Ses, add_email: AddEmail, query: Query
) -> None:
    deliver = worker()
    ids = [add_email() for _ in range(12)]
    deliver(ids[0])
    ses.answer(*[{"status": 429, "code": "TooManyRequestsException", "message": "x"}] * 3)
    deliver(*ids[1:4])
    rows = "SELECT status, provider_retry_count, provider_next_retry_at > now() FROM emails WHERE id = ANY (%s::uuid[])"
    assert query(rows, ids[1:4]) == [("queued", 0, True)] * 3
    # The region does not rest: other mails leave meanwhile.
    deliver(*ids[4:])
    assert query(rows, ids[4:]) == [("sent", 0, None)] * 8


@pytest.mark.parametrize(("answer", "longest"), [(PAUSED, 75), (KEY, 75), (QUOTA, 1100)])
def test_what_stops_one_process_stops_the_others(
    worker: Callable[[], Deliver],
    ses: Ses,
    add_email: AddEmail,
    query: Query,
    answer: dict[str, Any],
    longest: int,
) -> None:
    one, other = worker(), worker()
    ids = [add_email() for _ in range(4)]
    one(ids[0])
    ses.answer(answer)  # once: the mail of another call is taken
    one(ids[1])
    other(ids[2])
    one(ids[3])
    rest = "extract(epoch FROM provider_next_retry_at - now())"
    rows = query(f"SELECT status, provider_retry_count, {rest} FROM emails WHERE id = ANY (%s::uuid[])", ids[1:])
    assert [row[:2] for row in rows] == [("queued", 0)] * 3
    assert all(50 < row[2] < longest for row in rows)
    assert len(ses.taken()) == 1
    assert ses.ledger()["calls"] == 1


def test_a_machine_whose_clock_is_wrong_stops_no_other(
    worker: Callable[[], Deliver], ses: Ses, add_email: AddEmail, query: Query
) -> None:
    one, other = worker(), worker()
    first, second, third = (add_email() for _ in range(3))
    ses.answer(CLOCK)
    one(first)
    other(second)
    one(third)
    assert query("SELECT id::text, status, provider_retry_count FROM emails WHERE status <> 'sent' ORDER BY id") == [
        (email_id, "queued", 0) for email_id in sorted([first, third])
    ]
    assert len(ses.taken()) == 1


@pytest.mark.parametrize(
    "account",
    [
        {"SendingEnabled": False},
        {"EnforcementStatus": "SHUTDOWN"},
        {"SendQuota": {"MaxSendRate": 9, "Max24HourSend": 5, "SentLast24Hours": 5}},
    ],
)
def test_an_account_that_says_that_it_takes_no_mail_is_not_tried(
    worker: Callable[[], Deliver], ses: Ses, add_email: AddEmail, query: Query, account: dict[str, Any]
) -> None:
    ses.has(account=account)
    email_id = add_email()
    worker()(email_id)
    assert query("SELECT status, provider_retry_count, provider_next_retry_at > now() FROM emails") == [
        ("queued", 0, True)
    ]
    assert ses.ledger()["calls"] == 0


def test_a_mail_costs_as_many_recipients_as_it_has(
    worker: Callable[[], Deliver], ses: Ses, add_email: AddEmail
) -> None:
    ses.has(rate=100.0, daily=5)
    deliver = worker()
    deliver(add_email(to=["a@x.example", "b@x.example"], cc=["c@x.example"], bcc=["d@x.example"]))
    deliver(add_email(to=["a@x.example", "b@x.example"]))
    deliver(add_email())
    assert ses.ledger()["recipients"] == 5
    assert ses.ledger()["calls"] == 2


def test_a_mail_that_is_late_for_its_permits_waits_and_leaves_nothing_behind(
    worker: Callable[[], Deliver],
    ses: Ses,
    add_email: AddEmail,
    query: Query,
    handovers: Handovers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deliver = worker()
    ids = [add_email() for _ in range(3)]
    deliver(ids[0])
    states = []

    def late(_: Permit) -> None:
        states.append(handovers.state(ids[1]))
        raise TooLate(30.0)

    with monkeypatch.context() as patched:
        patched.setattr(Permit, "use", late)
        deliver(ids[1])
    rows = "SELECT status, provider_retry_count, provider_next_retry_at > now() FROM emails WHERE id = %s"
    assert query(rows, ids[1]) == [("queued", 0, True)]
    assert ses.ledger()["calls"] == 1
    assert (states, handovers.state(ids[1])) == ([HANDING_OVER], "")
    deliver(ids[2])  # neither the region nor the connection has suffered
    query("UPDATE emails SET provider_next_retry_at = NULL WHERE id = %s", ids[1])
    deliver(ids[1])
    assert {taken.email_id for taken in ses.taken()} == set(ids)
    assert len(ses.taken()) == 3


def test_a_mail_that_finds_no_connection_after_a_rest_keeps_no_other_from_being_tried(
    worker: Callable[[], Deliver], ses: Ses, add_email: AddEmail, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Regions] = []
    begin = Regions.__init__
    monkeypatch.setattr(Regions, "__init__", lambda self, *given: made.append(self) or begin(self, *given))
    deliver = worker()
    first, second = add_email(), add_email()
    deliver(add_email())

    def busy(_: Permit) -> None:
        raise Busy

    with monkeypatch.context() as patched:
        patched.setattr(Permit, "use", busy)
        for region in {key[0] for key in made[-1]._states}:
            made[-1].rest_with_others(region, "paused", 0.0)
            made[-1]._states[(region,)].rest = 1.0
        deliver(first)
    assert query("SELECT status FROM emails WHERE id = %s", first) == [("queued",)]
    deliver(second)
    assert ses.ledger()["calls"] == 2


def test_the_last_look_at_a_permit_is_taken_before_the_mail_leaves(
    worker: Callable[[], Deliver], ses: Ses, add_email: AddEmail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stands still between its wait and the call gets another permit."""
    deliver = worker()
    deliver(add_email())
    given: list[Permit] = []
    wait, renewed = Pace.wait, PacedAccount.renewed

    def slow(*arguments: Any) -> Permit | Rest:
        permit = wait(*arguments)
        assert isinstance(permit, Permit)
        permit.moment = permit.latest = 0.0
        return permit

    def renew(*arguments: Any) -> Permit:
        given.append(renewed(*arguments))
        return given[-1]

    monkeypatch.setattr(Pace, "wait", slow)
    monkeypatch.setattr(PacedAccount, "renewed", renew)
    deliver(add_email())
    assert given
    assert ses.ledger()["calls"] == 2


def test_an_account_that_may_not_be_asked_has_the_rate_of_the_setting(ses: Ses) -> None:
    provider = SesProvider()
    ses.has(account=DENIED)
    assert provider.account("us-east-1") == UNTOLD
    ses.has(account={"status": 500, "code": "InternalFailure"})
    assert provider.account("us-east-1") is None
    ses.has(rate=14.0, daily=50)
    account = provider.account("us-east-1")
    assert account is not None
    assert (account.rate, account.left, account.off) == (14.0, 50, "")
    provider.close()


def test_without_an_answer_the_account_is_unknown(monkeypatch: pytest.MonkeyPatch, ses: Ses) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SESV2", "http://127.0.0.1:1")
    with pytest.raises(SesError) as error:
        SesAccount("us-east-1").ask()
    assert error.value.status == 0
    assert SesProvider().account("not a region") is None


def test_a_machine_that_stood_still_right_before_a_mail_leaves_does_not_send_it(
    new_deliverer: Callable[..., Deliverer],
    outgoing: Outgoing,
    add_email: AddEmail,
    ses: Ses,
    redis_url: str,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind the word to Redis: its monotonic clock stood still, too, and the permit is in time by it."""
    provider = SesProvider()
    link = RedisLink(redis_url, verify_tls=True, timeout=1.0, pause=0.1)
    pace = Pace(link, "ses", provider.account, fallback=200.0, shares=1)
    deliverer = new_deliverer(provider, pace=pace)
    email_id = add_email()
    admit, now = Regions.admit, leases.time.time

    def stands_still(*arguments: Any) -> float:
        monkeypatch.setattr(leases.time, "time", lambda: now() + 1000.0)
        return admit(*arguments)

    (row,) = outgoing.claim([email_id])
    with monkeypatch.context() as patched:
        patched.setattr(Regions, "admit", stands_still)
        deliverer.deliver(email_of(row))
    monkeypatch.setattr(leases.time, "time", now)
    assert ses.taken() == []
    assert query("SELECT status, provider_retry_count, provider_last_error_code FROM emails") == [("queued", 0, None)]
    query("UPDATE emails SET provider_next_retry_at = NULL")
    (row,) = outgoing.claim([email_id])
    deliverer.deliver(email_of(row))
    assert len(ses.taken()) == 1
    provider.close()
    link.close()


@pytest.mark.parametrize("cause", ["claim", "region", "connection"])
def test_a_permit_that_a_mail_does_not_use_uses_up_nothing_of_the_days_quota(
    new_deliverer: Callable[..., Deliverer],
    outgoing: Outgoing,
    add_email: AddEmail,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    cause: str,
) -> None:
    provider = Scripted()
    link = RedisLink(redis_url, verify_tls=True, timeout=1.0, pause=0.1)
    pace = Pace(link, "ses", lambda _: Account(rate=1000.0, left=100, off=""), fallback=200.0, shares=1)
    deliverer = new_deliverer(provider, pace=pace)

    def busy(_: object) -> None:
        raise Busy

    if cause == "claim":
        monkeypatch.setattr(Handovers, "may_hand_over", lambda *_, **__: False)
    elif cause == "region":
        monkeypatch.setattr(Regions, "admit", lambda *_: 1.0)
    else:
        monkeypatch.setattr(provider, "send", busy)
    for row in outgoing.claim([add_email(to=["a@x.example", "b@x.example"])]):
        deliverer.deliver(email_of(row))
    grant = pace._of("us-east-1")._allowance.reserve(0.0, [], 0.0)
    assert (provider.calls, grant.left) == ([], 100)
    link.close()
