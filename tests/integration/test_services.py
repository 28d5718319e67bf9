"""The servers that everything else is tested against: do they start, survive and end as promised?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from scripts.database import NewApiKey, apply_schema, execute
from scripts.services import Postgres, ServiceFailed, Sqs, Valkey, processes


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
    finally:
        connection.close()


def test_postgres_keeps_its_data_over_stop_and_kill(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "a path with blanks")
    with server:
        execute(server.url(), "CREATE TABLE kept (n int)")
        execute(server.url(), "INSERT INTO kept VALUES (1)")
    assert not server.running
    with server:
        execute(server.url(), "INSERT INTO kept VALUES (2)")
        server.kill()
        server.start()
        assert rows(server.url(), "SELECT n FROM kept ORDER BY n") == [(1,), (2,)]


def test_postgres_asks_for_the_password(postgres_server: Postgres) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host=postgres_server.host, port=postgres_server.port, user="postgres", password="wrong")


def test_valkey_asks_for_the_password(valkey_server: Valkey) -> None:
    with (
        redis.Redis(host=valkey_server.host, port=valkey_server.port, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.get("anything")


def test_persistent_valkey_keeps_its_data(tmp_path: Path) -> None:
    with Valkey(tmp_path, persistent=True) as server, redis.Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with Valkey(tmp_path, persistent=True) as server, redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_a_start_ends_what_a_killed_predecessor_left(tmp_path: Path) -> None:
    forgotten = Postgres(tmp_path).start()
    left = psutil.Process(forgotten.pid)
    with Postgres(tmp_path) as server:
        assert processes.ended(left)
        assert rows(server.url(), "SELECT 1") == [(1,)]
    forgotten.stop()


def test_a_start_leaves_strangers_alone(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text(json.dumps({"pid": psutil.Process().ppid(), "arguments": ["postgres"]}))
    with Valkey(tmp_path):
        assert psutil.pid_exists(psutil.Process().ppid())


def test_a_server_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with Valkey(tmp_path / "first") as first, pytest.raises(ServiceFailed) as failure:
        Postgres(tmp_path / "second", port=first.port).start()
    assert "could not bind" in str(failure.value) or "could not create any TCP/IP sockets" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_the_schema_can_be_applied_again(postgres_url: str) -> None:
    apply_schema(postgres_url)
    indexes = {name for (name,) in rows(postgres_url, "SELECT indexname FROM pg_indexes WHERE tablename = 'emails'")}
    assert {"emails_status", "emails_created_at", "emails_status_created_at", "emails_user_id_created_at"} <= indexes


def test_an_api_key_is_stored_as_a_hash(postgres_url: str, make_api_key: Callable[..., NewApiKey]) -> None:
    key = make_api_key(domain="example.com")
    assert key.token.startswith("os_live_")
    stored = rows(postgres_url, "SELECT * FROM api_keys")
    assert len(stored) == 1
    assert key.token not in json.dumps(stored, default=str)


def test_queues(sqs: Sqs, queue_url: str, fifo_queue_url: str) -> None:
    assert fifo_queue_url.endswith(".fifo")
    sqs.client().send_message(QueueUrl=queue_url, MessageBody="job")
    received = sqs.client().receive_message(QueueUrl=queue_url)["Messages"]
    assert [message["Body"] for message in received] == ["job"]
