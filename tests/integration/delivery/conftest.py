"""The way out by itself: rows in Postgres, the double of SES over HTTP. psycopg2 waits in gevent's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from relay.delivery.deliverer import Deliverer
from relay.delivery.handovers import Handovers
from relay.delivery.large_mails import LargeMails
from relay.delivery.pace import Pace
from relay.delivery.provider import Provider
from relay.delivery.row import email_of
from relay.delivery.ses_provider import SesProvider
from relay.delivery.tracking import Tracking
from relay.delivery.unclear import Unclear
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.row_contents import RowContents
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink
from scripts.services import Ses
from tests.support import email_rows
from tests.support.paces import Asked, MakePace


@pytest.fixture(scope="session")
def ses_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ses]:
    with Ses(tmp_path_factory.mktemp("ses")) as server:
        yield server


@pytest.fixture
def ses(ses_server: Ses, monkeypatch: pytest.MonkeyPatch) -> Ses:
    ses_server.forget()
    for name, value in ses_server.client_environment.items():
        monkeypatch.setenv(name, value)
    return ses_server


@pytest.fixture
def database(postgres_url: str, green_psycopg: None) -> Iterator[Database]:
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=4)
    yield database
    database.close()


@pytest.fixture
def outgoing(database: Database) -> Outgoing:
    return Outgoing(database)


@pytest.fixture
def left(database: Database) -> LeftRows:
    return LeftRows(database)


@pytest.fixture
def without_redis() -> ClaimStates:
    return ClaimStates(RedisLink(None, verify_tls=True, timeout=1.0, pause=1.0))


@pytest.fixture
def handovers(outgoing: Outgoing, left: LeftRows, without_redis: ClaimStates) -> Handovers:
    """Of a process without Redis."""
    return Handovers(without_redis, outgoing, left, service="test", index=0, provider="ses")


@pytest.fixture
def asked() -> Asked:
    """What the account of `make_pace` says."""
    return Asked()


@pytest.fixture
def make_pace(redis_url: str, asked: Asked) -> Iterator[MakePace]:
    """Makes the paces of processes, with Redis unless `url` says otherwise."""
    links: list[RedisLink] = []

    def make(url: str | None = redis_url, *, shares: int = 1, fallback: float = 2.0) -> Pace:
        link = None
        if url is not None:
            link = RedisLink(url, verify_tls=True, timeout=1.0, pause=0.05)
            links.append(link)
        return Pace(link, "ses", asked, fallback=fallback, shares=shares)

    yield make
    for link in links:
        link.close()


@pytest.fixture
def unclear(left: LeftRows) -> Unclear:
    return Unclear(left, "again")


@pytest.fixture
def large_mails(database: Database, tmp_path: Path) -> LargeMails:
    return LargeMails(RowContents(database), str(tmp_path), fetches=4)


@pytest.fixture
def query(postgres_url: str) -> Callable[..., list[tuple[Any, ...]]]:
    """Rows of a statement, on a separate connection."""

    def run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def add_email(postgres_url: str) -> Callable[..., str]:
    """Inserts a row of emails, every column optional; its id."""
    return partial(email_rows.add_email, postgres_url)


@pytest.fixture
def pauses() -> list[float]:
    """The pauses that failures asked for."""
    return []


@pytest.fixture
def new_deliverer(
    outgoing: Outgoing, large_mails: LargeMails, handovers: Handovers, unclear: Unclear
) -> Callable[..., Deliverer]:
    """Makes a deliverer of a process without Redis, which records what is sent; the test gives what is otherwise."""

    def make(provider: Provider, **otherwise: Any) -> Deliverer:
        usual: dict[str, Any] = {
            "max_attempts": 3,
            "records_sent": lambda _: True,
            "tracking": None,
            "large_mails": large_mails,
            "handovers": handovers,
            "unclear": unclear,
            "pause": lambda _: None,
        }
        return Deliverer(outgoing, provider, **(usual | otherwise))

    return make


@pytest.fixture
def deliver(
    outgoing: Outgoing, new_deliverer: Callable[..., Deliverer], ses: Ses, pauses: list[float]
) -> Iterator[Callable[..., None]]:
    """Claims and delivers one row by way of SES's double."""
    provider = SesProvider()

    def run(email_id: str, *, records_sent: bool = True, tracking: Tracking | None = None) -> None:
        deliverer = new_deliverer(provider, records_sent=lambda _: records_sent, tracking=tracking, pause=pauses.append)
        for row in outgoing.claim([email_id]):
            deliverer.deliver(email_of(row))

    yield run
    provider.close()
