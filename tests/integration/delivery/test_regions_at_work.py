"""Mails that are on their way at the same moment while a region gets into trouble: real rows, the double of SES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import Handovers
from relay.delivery.outcome import Outcome, Sent, of_ses_error, of_silence
from relay.delivery.provider import Handover
from relay.delivery.row import email_of
from relay.postgres.outgoing import Outgoing

Query = Callable[..., list[tuple[Any, ...]]]


class Scripted:
    """A provider that answers as the test says, and notes who was on the way at once.

    A stand-in: what many calls do that overlap can't be arranged with a server.
    """

    name = "ses"
    region = None

    def __init__(self) -> None:
        self.answer: Outcome = Sent("id")
        self.on_the_way = 0
        self.most = 0
        self.calls = 0

    def send(self, _: Handover) -> Outcome:
        self.calls += 1
        self.on_the_way += 1
        self.most = max(self.most, self.on_the_way)
        answer = self.answer
        gevent.sleep(0.05)
        self.on_the_way -= 1
        return answer

    def close(self) -> None:
        """Nothing is held open."""


@pytest.mark.parametrize(
    "failure",
    [
        of_ses_error(500, "InternalFailure", ""),
        of_ses_error(400, "SendingPausedException", ""),
        of_silence("TimeoutError", "", began=True),
        of_silence("ConnectionRefusedError", "", began=False),
    ],
    ids=["500", "paused", "lost", "refused"],
)
def test_twenty_at_once_lose_nothing_and_one_is_tried_at_a_time(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
    failure: Outcome,
) -> None:
    provider = Scripted()
    deliverer = new_deliverer(provider, records_sent=lambda _: False)
    may_hand_over = Handovers.may_hand_over

    def once_redis_has_answered(handovers: Handovers, *values: Any, **named: Any) -> bool:
        """All mails have passed the first look at the region when the first of them is handed over."""
        gevent.sleep(0.05)
        return may_hand_over(handovers, *values, **named)

    monkeypatch.setattr(Handovers, "may_hand_over", once_redis_has_answered)

    def deliver_all(ids: list[str]) -> None:
        query("UPDATE emails SET provider_next_retry_at = NULL WHERE status = 'queued'")
        rows = outgoing.claim(ids)
        gevent.joinall([gevent.spawn(deliverer.deliver, email_of(row)) for row in rows], raise_error=True)

    ids = [add_email() for _ in range(20)]
    provider.answer = failure
    deliver_all(ids)
    assert query("SELECT DISTINCT status, provider_retry_count FROM emails") == [("queued", 0)]

    # Its rest is over: one mail is tried, and the others wait for what becomes of it.
    class Later:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def monotonic(self) -> float:
            import time

            return time.monotonic() + self.seconds

    monkeypatch.setattr("relay.delivery.regions.time", Later(70.0))
    provider.calls = provider.most = 0
    deliver_all(ids)
    assert (provider.calls, provider.most) == (1, 1)

    # And when SES takes mail again all leave.
    monkeypatch.setattr("relay.delivery.regions.time", Later(1000.0))
    provider.answer = Sent("id")
    deliver_all(ids)
    deliver_all(ids)
    assert query("SELECT DISTINCT status, provider_retry_count FROM emails") == [("sent", 0)]
    assert query("SELECT count(*) FROM email_events") == [(0,)]


def test_an_unexpected_error_in_the_mail_that_is_tried_after_a_rest_does_not_keep_the_others_waiting(
    add_email: Callable[..., str], outgoing: Outgoing, new_deliverer: Callable[..., Deliverer], query: Query
) -> None:
    provider = Scripted()
    deliverer = new_deliverer(provider, records_sent=lambda _: False)
    first, tried, other = add_email(), add_email(), add_email()

    def deliver(email_id: str) -> None:
        for row in outgoing.claim([email_id]):
            deliverer.deliver(email_of(row))

    provider.answer = of_ses_error(400, "SendingPausedException", "")
    deliver(first)
    deliverer._regions._states[("us-east-1",)].rests_until = 0.0  # the rest is over
    provider.answer = Sent("id")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(provider, "send", {}.pop)
        deliver(tried)
    deliver(other)
    assert query("SELECT status FROM emails WHERE id IN (%s, %s) ORDER BY status", tried, other) == [
        ("queued",),
        ("sent",),
    ]
