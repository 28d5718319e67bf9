"""A claim is a lease: what another worker has by now, a late one neither sends nor takes away (contract section 6)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from relay.aws import ses as aws_ses
from relay.core.provider_limits import MAX_COMPOSED_OCTETS
from relay.delivery import permit, records, smtp_provider
from relay.delivery.deliverer import Deliverer
from relay.delivery.row import email_of
from relay.delivery.ses_provider import SesProvider
from relay.postgres import leases
from relay.postgres.closed_rows import UnsentRow
from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import Event
from scripts.services import Ses
from tests.support.ended import failed_row

Query = Callable[..., list[tuple[Any, ...]]]


def status(query: Query, email_id: str) -> str:
    return str(query("SELECT status FROM emails WHERE id = %s", email_id)[0][0])


@pytest.fixture
def other(postgres_url: str, outgoing: Outgoing) -> Any:
    """A second worker of ours on the same tables."""
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=2)
    yield Outgoing(database)
    database.close()


ENDS: dict[str, Callable[[Outgoing, str], None]] = {
    "retry": lambda worker, id_: worker.ended(failed_row(worker, id_, seconds=4.0)),
    "fail": lambda worker, id_: worker.ended(failed_row(worker, id_, seconds=None)),
    "suppress": lambda worker, id_: worker.ended(
        UnsentRow(id_, worker.mark(id_), "suppressed", [Event("suppressed", f"s:{id_}", {})])
    ),
    "put_back": lambda worker, id_: worker.put_back([id_], 1.0),
    "simulate": lambda worker, id_: worker.ended(
        UnsentRow(id_, worker.mark(id_), "delivered", [Event("sent", f"x:{id_}", {})])
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_late_worker_takes_nothing_away_from_the_one_that_has_the_row_by_now(
    add_email: Callable[..., str], outgoing: Outgoing, other: Outgoing, query: Query, end: str
) -> None:
    email_id = add_email()
    assert outgoing.claim([email_id])
    query("UPDATE emails SET status = 'queued' WHERE id = %s", email_id)  # its claim was given up
    assert other.claim([email_id])
    before = query("SELECT status, provider_last_attempted_at, provider_next_retry_at FROM emails")
    ENDS[end](outgoing, email_id)
    assert query("SELECT status, provider_last_attempted_at, provider_next_retry_at FROM emails") == before
    assert query("SELECT count(*) FROM email_events") == [(0,)]
    ENDS[end](other, email_id)
    assert status(query, email_id) != "processing"


def test_what_the_provider_has_is_not_sent_again_whichever_process_has_the_row(
    add_email: Callable[..., str], outgoing: Outgoing, other: Outgoing, query: Query
) -> None:
    given_up, taken, canceled = add_email(), add_email(), add_email()
    assert len(outgoing.claim([given_up, taken, canceled])) == 3
    query("UPDATE emails SET status = 'queued' WHERE id <> %s", canceled)
    query("UPDATE emails SET status = 'canceled' WHERE id = %s", canceled)
    assert other.claim([taken])
    for email_id in (given_up, taken, canceled):
        outgoing.sent(email_id, None)
    other.put_back([taken], 0.0)
    assert [status(query, email_id) for email_id in (given_up, taken, canceled)] == ["sent", "sent", "canceled"]
    assert other.claim([given_up, taken, canceled]) == []


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_a_worker_that_stood_still_between_claim_and_call_does_not_send(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    ses: Ses,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
    clock: str,
) -> None:
    """Either clock may be the one that says so: one stands still with a machine that sleeps, the other may be set."""
    email_id = add_email()
    provider = SesProvider()
    deliverer = new_deliverer(provider)
    (row,) = outgoing.claim([email_id])
    now = getattr(leases.time, clock)
    with monkeypatch.context() as patched:
        patched.setattr(leases.time, clock, lambda: now() + leases.HANDOVER_SECONDS + 1)
        deliverer.deliver(email_of(row))
    assert ses.taken() == []
    assert query("SELECT status, provider_retry_count FROM emails") == [("queued", 0)]
    (row,) = outgoing.claim([email_id])
    deliverer.deliver(email_of(row))
    assert len(ses.taken()) == 1
    provider.close()


def test_all_that_may_follow_a_claim_ends_within_the_lease() -> None:
    # The largest mail as Base64, and what stands around it.
    largest = MAX_COMPOSED_OCTETS * 4 / 3 + 10_000
    calling = aws_ses._OPEN_SECONDS + aws_ses._CALL_SECONDS + largest / aws_ses._LEAST_RATE + permit._LONGEST
    calling = max(calling, smtp_provider.CALL_SECONDS)
    # The last try begins right before the end, with others and alone.
    recording = records.RECORDING_SECONDS + 1.0 + 5.0
    # A mark is up to a second older than its claim (`relay.postgres.lost_claims`).
    assert leases.HANDOVER_SECONDS + calling + recording + 1.0 < leases.LEASE.total_seconds()


@pytest.mark.parametrize("end", [*ENDS, "sent"])
def test_nothing_is_kept_of_a_claim_whose_end_is_recorded(
    add_email: Callable[..., str], outgoing: Outgoing, end: str
) -> None:
    """A busy process claims half a million rows in the time for which others are kept."""
    email_id = add_email()
    assert outgoing.claim([email_id])
    assert len(outgoing._leases) == 1
    (ENDS | {"sent": lambda worker, id_: worker.sent(id_, None)})[end](outgoing, email_id)
    assert len(outgoing._leases) == 0


def test_what_is_kept_of_claims_is_bounded_by_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = leases.Leases()
    moment = 1000.0
    monkeypatch.setattr(leases.time, "monotonic", lambda: moment)
    monkeypatch.setattr(leases.time, "time", lambda: moment)
    for number in range(5000):
        moment += random.uniform(0.0, 4.0)
        kept.note(str(number % 3000), leases.datetime.min, leases.clocks())
    assert len(kept) < 1200
    assert kept.mark("1999") == leases.datetime.min
    assert kept.mark("2001") is None
