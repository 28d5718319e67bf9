"""The last release's delivery worker beside this one: each settles what the other one leaves."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from relay.redis import keys
from relay.redis.claim_states import CLAIMED, HANDING_OVER, SENT, SILENT_MS
from scripts.database import query
from scripts.services import Delivery
from scripts.services.ses_request import Answer
from tests.faults.delivery_stage import DeliveryStage
from tests.faults.stage import wait_until
from tests.support.relay_process import frozen

#: The commit of the last release that has a delivery worker.
LAST_RELEASE: Final = "e55ec5a"
#: Mails that a service has claimed when it is killed, and recipients a second of its account: most wait for a permit.
_MAILS: Final = 20
_SLOW: Final = 4.0
#: What Redis knows of the account.
_PACE: Final = keys.PACE_PREFIX + b"ses:us-east-1"
#: How the first of them are answered, and all others.
_SOON: Final[Answer] = {"seconds": 0.3}
_NOT_YET: Final[Answer] = {"seconds": 25.0}
_ANSWERED: Final = 3


@dataclass(slots=True)
class Left:
    """What one service left when it was killed, by what Redis said of it, and what the other one made of it."""

    states: Counter[str] = field(default_factory=Counter)
    #: The status of those rows when the other one had settled what it could before their leases were over.
    became: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0

    def check(self) -> None:
        """Raises AssertionError where a state was not understood."""
        assert all(self.states[state] for state in (CLAIMED, HANDING_OVER, SENT)), self
        for (state, status), count in self.became.items():
            # What has not been handed over leaves by the other one, which may be about to.
            wanted = {CLAIMED: {"sent"}, HANDING_OVER: {"processing"}, SENT: {"sent"}}[state]
            assert status in wanted, f"{count} claims in the state {state!r} became {status}: {self}"


def leave_behind(stage: DeliveryStage, leaving: Delivery, staying: Delivery) -> Left:
    """Kills one service for good with claims in each state. Nothing else may be waiting."""
    left = Left()
    before = stage.count("processing")
    with redis.Redis.from_url(stage.valkey.url) as client:
        with frozen(staying):
            _slow_down(stage, client)
            stage.ses.answer(*[_SOON] * _ANSWERED, *[_NOT_YET] * (2 * _MAILS))
            first = len(stage.mails)
            stage.add(_MAILS)
            mails = stage.mails[first:]
            wait_until(lambda: stage.count("processing") >= before + _MAILS, "all are claimed", seconds=20.0)
            stage.proxies[stage.postgres.name].refuse()
            wait_until(lambda: SENT in _states(client, mails).values(), "an answer is in Redis", seconds=20.0)
            leaving.kill()
            states = _states(client, mails)
        stage.ses.answer()
        stage.ses.has()
        began = time.monotonic()
        stage.proxies[stage.postgres.name].heal()
        wait_until(
            lambda: not any(state in (CLAIMED, SENT) for state in _states(client, mails).values()),
            "what can be settled is",
            seconds=SILENT_MS / 1000 + 30.0,
        )
        left.seconds = time.monotonic() - began
        client.delete(_PACE)
    left.states = Counter(states.values())
    wait_until(lambda: stage.count("queued") == 0, "what was not handed over leaves", seconds=60.0)
    wait_until(lambda: stage.count("processing") == before + left.states[HANDING_OVER], "and is recorded")
    rows = query(stage.database_url, "SELECT id::text, status FROM emails")
    became = {str(email_id): str(status) for email_id, status in rows}
    left.became = Counter((state, became[email_id]) for email_id, state in states.items())
    leaving.start()
    return left


def _slow_down(stage: DeliveryStage, client: redis.Redis) -> None:
    """The account is another one from now on, as far as Redis is asked."""
    stage.ses.has(rate=_SLOW)
    client.delete(_PACE)


def _states(client: Any, mails: list[str]) -> dict[str, str]:
    """What Redis says of these mails: how far each is."""
    found: dict[str, str] = {}
    for owner in client.zrange(keys.DELIVERY_OWNERS_KEY, 0, -1):
        for email_id, value in client.hgetall(keys.DELIVERY_CLAIMS_PREFIX + owner).items():
            if email_id.decode() in mails:
                found[email_id.decode()] = value.decode()[:1]
    return found
