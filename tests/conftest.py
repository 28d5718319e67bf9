"""Real servers for every test that asks: each is started once a session (once a worker under pytest-xdist)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import hypothesis
import psycopg2.extensions
import pytest
import redis
from psycogreen.gevent import patch_psycopg

from scripts.database import NewApiKey, apply_schema, create_api_key, create_database, drop_database
from scripts.services import Postgres, Sqs, Valkey

# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("relay", deadline=None)
hypothesis.settings.load_profile("relay")


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """The session's Postgres. A test that stops or kills a server starts a separate one instead."""
    with Postgres(tmp_path_factory.mktemp("postgres"), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """The session's Valkey. A test that stops or kills a server starts a separate one instead."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def sqs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sqs]:
    """The session's SQS: `endpoint`, `region`, `client()`, `client_environment`, `create_queue(name)`."""
    with Sqs(tmp_path_factory.mktemp("sqs")) as server:
        yield server


@pytest.fixture(scope="session")
def schema_template(postgres_server: Postgres) -> str:
    """Name of a database with the contract's tables and no rows, to be copied."""
    apply_schema(create_database(postgres_server.url(), "schema_template"))
    return "schema_template"


@pytest.fixture
def green_psycopg() -> Iterator[None]:
    """psycopg2 waits in gevent's way, as it does in the processes."""
    patch_psycopg()
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.fixture
def postgres_url(postgres_server: Postgres, schema_template: str) -> Iterator[str]:
    """A database of the test's own: the contract's tables, no rows."""
    name = f"test_{uuid.uuid4().hex}"
    yield create_database(postgres_server.url(), name, schema_template)
    drop_database(postgres_server.url(), name)


@pytest.fixture
def redis_url(valkey_server: Valkey) -> str:
    """The session's Valkey, emptied."""
    with redis.Redis.from_url(valkey_server.url) as client:
        client.flushall()
    return valkey_server.url


@pytest.fixture
def queue_url(sqs: Sqs) -> str:
    """A standard queue of the test's own."""
    return sqs.create_queue(f"jobs-{uuid.uuid4().hex}")


@pytest.fixture
def fifo_queue_url(sqs: Sqs) -> str:
    """A FIFO queue of the test's own."""
    return sqs.create_queue(f"jobs-{uuid.uuid4().hex}.fifo")


@pytest.fixture
def make_api_key(postgres_url: str) -> Callable[..., NewApiKey]:
    """Stores an API key in the test's database: `make_api_key(user_id=…, domain=…, permission=…)`, all optional."""

    def make(**columns: str) -> NewApiKey:
        return create_api_key(postgres_url, **columns)

    return make
