"""An account that can't be asked, or that answers nonsense, with real processes: mail goes on, and the worker ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import redis

from relay.redis import keys
from scripts.database import query
from scripts.services.ses_request import Account
from tests.faults.delivery_stage import DeliveryStage
from tests.faults.stage import wait_until

#: What Redis knows of the account.
_PACE: Final = keys.PACE_PREFIX + b"ses:us-east-1"
#: Recipients a second: of the account, and of the setting.
_RATE: Final = 1000.0
_SETTING: Final = 100.0


def _said(body: str, *, length: int | None = None) -> Account:
    octets = len(body) if length is None else length
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {octets}\r\n\r\n"
    return {"raw": head + body}


_NONSENSE: Final[dict[str, Account]] = {
    "hanging": {"seconds": 3600.0},
    "dribbling": {**_said('{"SendQuota": {"MaxSendRate": 1}}'), "pause": 1.0},
    "half an answer": _said('{"SendQuota": {"MaxSen', length=400),
    "closed": {"raw": ""},
    "no HTTP": {"raw": "220 mx.example ESMTP\r\n"},
    "a gateway's page": _said("<html>Bad gateway</html>"),
    "nothing": _said(""),
    "an empty object": _said("{}"),
    "another document": _said('{"SendQuota": {"Max24HourSend": 1}, "accounts": [{"MaxSendRate": 1}]}'),
    "a list": _said("[]"),
    "an error": {"status": 500, "code": "InternalFailure"},
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveryStage]:
    directory = tmp_path_factory.mktemp("accounts")
    directory.chmod(0o755)  # Postgres may have to be another user
    with DeliveryStage(directory, processes=1, settings={"SMTP_RELAY_SES_RATE": f"{_SETTING:.0f}"}) as opened:
        yield opened


@pytest.fixture
def server(stage: DeliveryStage) -> Iterator[Any]:
    with redis.Redis.from_url(stage.valkey.url) as client:
        yield client


@pytest.fixture
def asked(stage: DeliveryStage, server: Any) -> Callable[[], None]:
    """Has the account asked with the next mail, and returns when it is."""

    def ask() -> None:
        before = stage.ses.ledger()["asked"]
        server.hset(_PACE, "asked", "0")
        _send(stage, 1)
        wait_until(lambda: stage.ses.ledger()["asked"] > before, "the account is asked")

    return ask


def _send(stage: DeliveryStage, count: int) -> None:
    stage.add(count)
    wait_until(lambda: stage.count("queued", "processing") == 0, "all have left")


def test_mail_leaves_at_the_rate_that_was_known_last_whatever_the_account_answers(
    stage: DeliveryStage, server: Any, asked: Callable[[], None]
) -> None:
    stage.ses.has(rate=_RATE)
    server.delete(_PACE)
    _send(stage, 1)
    wait_until(lambda: server.hget(_PACE, "rate") is not None, "the rate is known")
    for name, account in _NONSENSE.items():
        stage.ses.has(account=account, rate=_RATE)
        asked()
        _send(stage, 3)
        assert float(server.hget(_PACE, "rate")) == _RATE, name
    stage.ses.has(account={"status": 403, "code": "AccessDeniedException"}, rate=_RATE)
    asked()
    wait_until(
        lambda: float(server.hget(_PACE, "rate")) == _SETTING, "an account that may not be asked has the setting's"
    )
    assert stage.count("sent") == len(stage.mails)


def test_a_worker_whose_account_hangs_writes_its_first_claims_to_redis_and_ends_at_once(
    stage: DeliveryStage, server: Any
) -> None:
    """What it has claimed waits for 5 s for the rate. Redis answers slowly: claims are made before the first beat."""
    (worker,) = stage.services
    stage.ses.has(account={"seconds": 3600.0})
    worker.stop()
    server.delete(_PACE)
    stage.add(5)
    proxy = stage.proxies[stage.valkey.name]
    proxy.delay_to_client = 0.2
    worker.start()
    wait_until(lambda: stage.count("processing") == 5, "all are claimed")
    proxy.delay_to_client = 0.0
    wait_until(lambda: _claimed(stage, server) == 5, "Redis knows of all claims", seconds=3.0)
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 15.0
    assert stage.count("queued") == 5
    assert worker.log_path.read_text().count('"drain_timed_out"') == 0


def _claimed(stage: DeliveryStage, server: Any) -> int:
    """How many rows are claimed, and Redis knows that they are not handed over."""
    claimed = {str(email_id) for (email_id,) in query(stage.database_url, "SELECT id::text FROM emails")}
    found = 0
    for name in server.keys(keys.DELIVERY_CLAIMS_PREFIX + b"*"):
        found += sum(
            value.startswith(b"c:") for email_id, value in server.hgetall(name).items() if email_id.decode() in claimed
        )
    return found
