"""Two delivery workers, as real processes, and what they must not be misled by.

An account that can't be asked, or that answers nonsense: mail goes on, and a worker ends.

A worker that is stopped between its call to the provider and its record, and goes on when the other one has its rows.
It has its answers late, each of a kind: yes, no, not now, and none that says whether the provider has the mail. The
other one has sent, failed or put off the same mails by then, is still sending some, and events of the provider have
come of some.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Final

import pytest
import redis

from relay.delivery.unclear import LeftBehind
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.waiting import PLANNER, WaitingRows
from relay.redis import keys
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink
from scripts.database import execute, query
from scripts.services import Delivery, processes
from scripts.services.ses_request import Account, Answer
from tests.faults.delivery_stage import ROOT, DeliveryStage, log_of
from tests.faults.stage import wait_until

#: Each look is a connection to Postgres.
_wait: Final = partial(wait_until, every=0.1)
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
    "no HTTP": {"raw": "220 mx.example ESMTP\r\n"},
    "a gateway's page": _said("<html>Bad gateway</html>"),
    "an empty object": _said("{}"),
    "another document": _said('{"SendQuota": {"Max24HourSend": 1}, "accounts": [{"MaxSendRate": 1}]}'),
    "an error": {"status": 500, "code": "InternalFailure"},
}
_MAILS: Final = 20
#: Answers to the worker that is stopped before they come, and to the other one.
_KINDS: Final[tuple[Answer, ...]] = (
    {},
    {},
    {"status": 400, "code": "MessageRejected", "message": "no"},
    {"status": 503, "code": "ServiceUnavailable", "message": ""},
    {"status": 429, "code": "TooManyRequestsException", "message": "slower"},
)
_LATE: Final[list[Answer]] = [{**kind, "seconds": 3.0} for kind in _KINDS] * (_MAILS // len(_KINDS))
_OTHERS: Final[list[Answer]] = [{}, {}, {**_KINDS[2]}, {**_KINDS[3]}, {"seconds": 8.0}] * (_MAILS // len(_KINDS))
_FINAL: Final = ("sent", "failed", "delivered")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveryStage]:
    directory = tmp_path_factory.mktemp("workers")
    directory.chmod(0o755)  # Postgres may have to be another user
    settings = {"SMTP_RELAY_SES_RATE": f"{_SETTING:.0f}", "SMTP_RELAY_DELIVERY_CONCURRENCY": str(_MAILS)}
    with DeliveryStage(directory, processes=1, checkouts=(ROOT, ROOT), settings=settings) as opened:
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
        _wait(lambda: stage.ses.ledger()["asked"] > before, "the account is asked")

    return ask


def _send(stage: DeliveryStage, count: int) -> None:
    stage.add(count)
    _wait(lambda: stage.count("queued", "processing") == 0, "all have left")


def test_mail_leaves_at_the_rate_that_was_known_last_whatever_the_account_answers(
    stage: DeliveryStage, server: Any, asked: Callable[[], None]
) -> None:
    stage.ses.has(rate=_RATE)
    server.delete(_PACE)
    _send(stage, 1)
    _wait(lambda: server.hget(_PACE, "rate") is not None, "the rate is known")
    for name, account in _NONSENSE.items():
        stage.ses.has(account=account, rate=_RATE)
        asked()
        _send(stage, 3)
        assert float(server.hget(_PACE, "rate")) == _RATE, name
    stage.ses.has(account={"status": 403, "code": "AccessDeniedException"}, rate=_RATE)
    asked()
    _wait(lambda: float(server.hget(_PACE, "rate")) == _SETTING, "an account that may not be asked has the setting's")
    assert stage.count("sent") == len(stage.mails)


def test_what_a_stopped_worker_records_late_changes_nothing_that_another_one_has_recorded(
    stage: DeliveryStage, server: Any
) -> None:
    stopped, other = stage.services
    stage.ses.has()
    server.delete(_PACE)
    _send(stage, 1)
    stops, others = processes.family(stopped.pid), processes.family(other.pid)
    processes.send(others, signal.SIGSTOP)
    stage.ses.answer(*_LATE)
    stage.add(_MAILS)
    mails = stage.mails[-_MAILS:]
    _wait(lambda: stage.ses.unused_answers() == 0, "all are handed over")
    processes.send(stops, signal.SIGSTOP)
    claimed = [email_id for email_id, status in _rows(stage, mails).items() if status == "processing"]
    assert len(claimed) >= _MAILS // 2, "it was stopped too late"

    stage.ses.answer(*_OTHERS)
    processes.send(others, signal.SIGCONT)
    _end_leases(stage, server)
    _wait(lambda: len(_final(stage, mails)) >= _MAILS // 2, "the other one has recorded some")
    _come_back_as_delivered(stage, mails)
    before = _final(stage, mails)

    processes.send(stops, signal.SIGCONT)
    _wait(lambda: _ended(stopped).issuperset(claimed), "its calls have ended")
    stage.ses.answer()
    stage.settle(60.0)
    after = _rows(stage, mails)
    assert {email_id: after[email_id] for email_id in before} == before
    assert set(after.values()) <= set(_FINAL), Counter(after.values())
    accepted = [line["email_id"] for line in log_of(other) if line.get("outcome") == "sent"]
    assert {after[email_id] for email_id in accepted if email_id in after} <= {"sent", "delivered"}
    for email_id, status in after.items():
        _check_events(email_id, status, _events(stage, email_id))
    decided = Counter(email_id for email_id, _ in stage.decisions())
    # As unclear each counts once, when its lease was over: not once more when its first worker goes on.
    assert {decided[email_id] for email_id in claimed if email_id in before} == {1}
    assert not [line for line in stage.log() if line["event"] in ("greenlet_failed", "unexpected_error")]


def _end_leases(stage: DeliveryStage, server: Any) -> None:
    """As after 45 s without a beat of the stopped one, and the 15 minutes of its leases. Their marks stay."""
    link = RedisLink(stage.valkey.url, verify_tls=True, timeout=5.0, pause=0.05)
    database = Database(stage.database_url, statement_seconds=4.5, idle_limit=1, switched_off=PLANNER)
    (owner,) = [
        owner
        for owner in server.zrange(keys.DELIVERY_OWNERS_KEY, 0, -1)
        if server.hlen(keys.DELIVERY_CLAIMS_PREFIX + owner) > 1  # claims, beside the server's run
    ]
    server.zadd(keys.DELIVERY_OWNERS_KEY, {owner: 0})
    _wait(lambda: server.zscore(keys.DELIVERY_OWNERS_KEY, owner) is None, "it is taken for dead")
    left = LeftBehind(LeftRows(database), ClaimStates(link))
    left.settle([row._replace(expired=True) for row in WaitingRows(database).processing(10 * _MAILS)])
    database.close()
    link.close()


def _come_back_as_delivered(stage: DeliveryStage, mails: Collection[str]) -> None:
    """Events of the provider have come of some that are sent."""
    sent = [email_id for email_id, status in _rows(stage, mails).items() if status == "sent"]
    execute(stage.database_url, "UPDATE emails SET status = 'delivered' WHERE id = ANY (%s::uuid[])", (sent[:3],))


def _final(stage: DeliveryStage, mails: Collection[str]) -> dict[str, str]:
    return {email_id: status for email_id, status in _rows(stage, mails).items() if status in _FINAL}


def _rows(stage: DeliveryStage, mails: Collection[str]) -> dict[str, str]:
    rows = query(stage.database_url, "SELECT id::text, status FROM emails WHERE id = ANY (%s::uuid[])", (list(mails),))
    return {str(email_id): str(status) for email_id, status in rows}


def _ended(service: Delivery) -> set[str]:
    """Mails that a worker says to be done with."""
    return {line["email_id"] for line in log_of(service) if line["event"] == "delivery"}


def _events(stage: DeliveryStage, email_id: str) -> Counter[str]:
    rows = query(stage.database_url, "SELECT type FROM email_events WHERE email_id = %s", (email_id,))
    return Counter(str(kind) for (kind,) in rows)


def _check_events(email_id: str, status: str, events: Counter[str]) -> None:
    wanted = "failed" if status == "failed" else "sent"
    assert (events["sent"], events["failed"]) == ((0, 1) if wanted == "failed" else (1, 0)), (email_id, status, events)


def test_a_worker_whose_account_hangs_writes_its_first_claims_to_redis_and_ends_at_once(
    stage: DeliveryStage, server: Any
) -> None:
    """What it has claimed waits for 5 s for the rate. Redis answers slowly, and comes first all the same."""
    worker, other = stage.services
    stage.ses.has(account={"seconds": 3600.0})
    other.stop()
    worker.stop()
    server.delete(_PACE)
    stage.add(5)
    proxy = stage.proxies[stage.valkey.name]
    proxy.delay_to_client = 0.2
    worker.start()
    _wait(lambda: stage.count("processing") == 5, "all are claimed")
    assert server.zcard(keys.DELIVERY_OWNERS_KEY) == 1
    proxy.delay_to_client = 0.0
    _wait(lambda: _claimed(stage, server) == 5, "Redis knows of all claims", seconds=3.0)
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
