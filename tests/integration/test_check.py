"""`python -m relay --check` against real services in good and in bad states, and the other arguments."""

from __future__ import annotations

import contextlib
import functools
import re
import resource
import socket
import socketserver
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pytest
import redis

from relay import __version__
from scripts.database import execute
from scripts.services import Sqs, free_port
from tests.support import program
from tests.support.certificates import write_pair
from tests.support.program import Result

run = functools.partial(program.run, "relay")


@pytest.fixture
def check(postgres_url: str, redis_url: str) -> Callable[..., Result]:
    """Runs the check with good settings, but for the variables given."""

    def check(**variables: str) -> Result:
        result = run("--check", **({"DATABASE_URL": postgres_url, "REDIS_URL": redis_url} | variables))
        assert result.errors == ""
        assert "Traceback" not in result.output
        return result

    return check


@pytest.fixture
def silent() -> Iterator[str]:
    """host:port of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """host:port without a listener."""
    return f"127.0.0.1:{free_port()}"


def with_login(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


# Arguments


def test_version() -> None:
    result = run("--version")
    assert (result.status, result.output) == (0, f"opensend-relay {__version__}\n")


@pytest.mark.parametrize("argument", ["--help", "-h"])
def test_help(argument: str) -> None:
    result = run(argument)
    assert result.status == 0
    assert "--check" in result.output


@pytest.mark.parametrize("arguments", [["--chekc"], ["serve"], ["--check", "--fast"], ["--version", "--check"]])
def test_unknown_arguments(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.status, result.output) == (2, "")
    assert "usage:" in result.errors


# All well


def test_all_well(check: Callable[..., Result], queue_url: str, sqs: Sqs, tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    result = check(
        BACKGROUND_JOBS_QUEUE_URL=queue_url,
        SMTP_RELAY_TLS_CERT_PATH=cert_path,
        SMTP_RELAY_TLS_KEY_PATH=key_path,
        SMTP_RELAY_MAX_CONNECTIONS="10",
        **sqs.client_environment,
    )
    assert result.status == 0
    assert [line.split()[:2] for line in result.output.splitlines()] == [
        ["ok", part] for part in ("settings", "certificate", "database", "redis", "queue")
    ]


def test_the_least(postgres_url: str) -> None:
    result = run("--check", DATABASE_URL=postgres_url)
    assert result.status == 0
    assert result.of("certificate")[0][0] == "warn"
    assert result.of("redis")[0][0] == "warn"
    (queue,) = result.of("queue")
    assert queue[0] == "ok"
    assert "poll Postgres" in queue[1]


def test_it_leaves_nothing_behind(check: Callable[..., Result], redis_url: str, postgres_url: str) -> None:
    assert check().status == 0
    with redis.Redis.from_url(redis_url) as client:
        left = client.keys("*")
        assert all(key.startswith(b"smtp-relay:") and 0 < client.ttl(key) <= 10 for key in left)
    connection = psycopg2.connect(postgres_url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM emails")
        assert cursor.fetchone() == (0,)
    connection.close()


# Settings


def test_wrong_settings() -> None:
    result = run("--check", DATABASE_URL="postgres://u:hunter2@db/x", WEB_CONCURRENCY="0")
    assert result.status == 2
    assert result.output == "FAIL  settings     WEB_CONCURRENCY is '0': should be a whole number from 1 to 256\n"


def test_an_expired_certificate(check: Callable[..., Result], tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path, days=-1, starts=-9)
    result = check(SMTP_RELAY_TLS_CERT_PATH=cert_path, SMTP_RELAY_TLS_KEY_PATH=key_path)
    assert result.status == 1
    ((level, text),) = result.of("certificate")
    assert level == "FAIL"
    assert "has expired" in text


def test_where_the_relay_could_not_listen(check: Callable[..., Result]) -> None:
    assert check(SMTP_RELAY_HOST="300.1.1.1").of("port") == [
        ("FAIL", "SMTP_RELAY_HOST is '300.1.1.1': should be an address of this machine, or a name")
    ]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = check(SMTP_RELAY_HOST="127.0.0.1", SMTP_RELAY_PORT=port)
        assert result.status == 1
        ((level, text),) = result.of("port")
        assert level == "FAIL"
        assert text.startswith(f"SMTP_RELAY_PORT is {port}: should be a free port")


def test_a_variable_that_is_no_setting(check: Callable[..., Result]) -> None:
    result = check(SMTP_RELAY_MAX_RECIPIENT="5")
    assert result.status == 0
    assert ("warn", "SMTP_RELAY_MAX_RECIPIENT is not a setting; did you mean SMTP_RELAY_MAX_RECIPIENTS?") in result.of(
        "settings"
    )


@pytest.mark.skipif(
    not 0 < resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1_000_000, reason="a process may open enough files here"
)
def test_too_few_descriptors(check: Callable[..., Result]) -> None:
    result = check(SMTP_RELAY_MAX_CONNECTIONS="1000000")
    assert result.status == 2
    ((level, text),) = result.of("settings")
    assert level == "FAIL"
    assert "SMTP_RELAY_MAX_CONNECTIONS" in text


# Database


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DROP TABLE webhook_deliveries", "webhook_deliveries: there is no such table"),
        ("ALTER TABLE emails DROP COLUMN bcc", "emails.bcc: there is no such column"),
        ("ALTER TABLE emails ALTER html TYPE bytea USING NULL", "emails.html: is bytea, should be text"),
        ("ALTER TABLE emails ALTER subject TYPE varchar(100)", "emails.subject: holds 100 characters, should be text"),
        (
            'ALTER TABLE emails ALTER "from" TYPE varchar(255)',
            "emails.from: holds 255 characters, should be varchar(512)",
        ),
        (
            "ALTER TABLE emails ADD COLUMN tenant text NOT NULL",
            "emails.tenant: not null, without a default, and unknown to the relay",
        ),
        (
            "DROP INDEX emails_user_id_idempotency_key",
            "emails: no unique index over idempotency_key, user_id; "
            "two mails with one idempotency key at the same time would both be sent",
        ),
        (
            "ALTER DATABASE {} SET default_transaction_read_only = on",
            "is read-only: a replica, or a role that may not write",
        ),
    ],
)
def test_a_database_that_does_not_fit(
    check: Callable[..., Result], postgres_url: str, statement: str, problem: str
) -> None:
    name = urlsplit(postgres_url).path.removeprefix("/")
    execute(postgres_url, statement.format(f'"{name}"'))
    result = check()
    assert result.status == 1
    assert result.of("database") == [("FAIL", problem)]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE emails ALTER subject TYPE varchar",
        'ALTER TABLE emails ALTER "from" TYPE text',
        "ALTER TABLE emails ADD COLUMN tenant text NOT NULL DEFAULT 'x'",
        "ALTER TABLE emails ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE webhook_deliveries ALTER attempt TYPE bigint",
        "CREATE TABLE something_else (id int)",
    ],
)
def test_a_database_that_differs_harmlessly(check: Callable[..., Result], postgres_url: str, statement: str) -> None:
    execute(postgres_url, statement)
    assert check().status == 0


def test_an_empty_database(check: Callable[..., Result], postgres_url: str) -> None:
    execute(postgres_url, "DROP SCHEMA public CASCADE")
    result = check()
    assert result.status == 1
    assert result.of("database") == [
        ("FAIL", "holds no OpenSend tables, or this role can't see them: run OpenSend's migrations first")
    ]


@pytest.fixture
def weak_role(postgres_url: str) -> Iterator[str]:
    """A role with a login and nothing else; its name is its password."""
    name = f"weak_{uuid.uuid4().hex}"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    yield name
    execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_that_may_not(check: Callable[..., Result], postgres_url: str, weak_role: str) -> None:
    for table in (
        "api_keys",
        "domains",
        "emails",
        "email_suppressions",
        "email_events",
        "webhooks",
        "webhook_deliveries",
    ):
        execute(postgres_url, f"GRANT SELECT, INSERT, UPDATE ON {table} TO {weak_role}")
    as_weak = with_login(postgres_url, weak_role, weak_role)
    assert check(DATABASE_URL=as_weak).of("database")[0][0] == "ok"
    execute(postgres_url, f"REVOKE INSERT ON emails FROM {weak_role}")
    execute(postgres_url, f"REVOKE UPDATE ON api_keys FROM {weak_role}")
    result = check(DATABASE_URL=as_weak)
    assert result.status == 1
    found = [text for level, text in result.of("database") if level == "FAIL"]
    assert "emails.id: the role may not INSERT" in found
    assert "api_keys.last_used_at: the role may not UPDATE" in found
    assert weak_role not in result.output


def test_a_wrong_password_is_not_shown(check: Callable[..., Result], postgres_url: str) -> None:
    result = check(DATABASE_URL=with_login(postgres_url, "somebody", "hunter2"))
    assert result.status == 1
    assert result.of("database")[0][0] == "FAIL"
    assert "hunter2" not in result.output


def test_no_database_there(check: Callable[..., Result], nobody: str) -> None:
    result = check(DATABASE_URL=f"postgres://u:hunter2@{nobody}/x")
    assert result.status == 1
    ((level, text),) = result.of("database")
    assert level == "FAIL"
    assert "refused" in text
    assert "hunter2" not in text


# Redis


def test_no_redis_there(check: Callable[..., Result], nobody: str) -> None:
    result = check(REDIS_URL=f"redis://:hunter2@{nobody}/0")
    assert result.status == 0
    ((level, text),) = result.of("redis")
    assert level == "warn"
    assert "hunter2" not in text


def test_a_wrong_redis_password(check: Callable[..., Result], redis_url: str) -> None:
    result = check(REDIS_URL=with_login(redis_url, "", "hunter2"))
    assert result.status == 1
    assert result.of("redis") == [("FAIL", "user or password is wrong")]
    assert "hunter2" not in result.output


@pytest.fixture
def self_signed_redis(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """The URL of the test's Redis behind TLS, with a self-signed certificate, as some platforms have it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_pair(tmp_path, name="redis.example"))
    target = urlsplit(redis_url)

    class Proxy(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection((target.hostname, target.port)) as server,
            ):
                client.settimeout(0.05)
                while True:
                    with contextlib.suppress(TimeoutError):
                        if not (request := client.recv(10_000)):
                            return
                        server.sendall(request)
                        client.sendall(server.recv(10_000))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        login = f":{target.password}@" if target.password else ""
        yield f"rediss://{login}127.0.0.1:{proxy.server_address[1]}/0"
        proxy.shutdown()


def test_a_self_signed_redis_is_refused_with_advice(check: Callable[..., Result], self_signed_redis: str) -> None:
    result = check(REDIS_URL=self_signed_redis)
    assert result.status == 0
    ((level, text),) = result.of("redis")
    assert level == "warn"
    assert text.endswith("if your platform uses self-signed ones, set SMTP_RELAY_REDIS_TLS_VERIFY=false")


def test_a_self_signed_redis_is_taken_where_wanted(check: Callable[..., Result], self_signed_redis: str) -> None:
    result = check(REDIS_URL=self_signed_redis, SMTP_RELAY_REDIS_TLS_VERIFY="false")
    assert result.of("redis") == [("ok", "answers, reads and writes")]


def test_redis_with_tls_where_there_is_none(check: Callable[..., Result], redis_url: str) -> None:
    result = check(REDIS_URL=redis_url.replace("redis://", "rediss://"))
    assert result.status == 0
    assert result.of("redis")[0][0] == "warn"
    assert "TLS is not answered: a server without TLS is redis://" in result.of("redis")[0][1]


def test_redis_without_tls_where_there_is_some(check: Callable[..., Result], self_signed_redis: str) -> None:
    result = check(REDIS_URL=self_signed_redis.replace("rediss://", "redis://"))
    assert result.status == 0
    assert result.of("redis")[0][0] == "warn"
    assert re.search("rediss://|closed the connection", result.of("redis")[0][1])


# Queue


def test_no_such_queue(check: Callable[..., Result], queue_url: str, sqs: Sqs) -> None:
    result = check(BACKGROUND_JOBS_QUEUE_URL=f"{queue_url}-gone", **sqs.client_environment)
    assert result.status == 1
    ((level, text),) = result.of("queue")
    assert level == "FAIL"
    assert "there is no such queue (" in text


def test_a_fifo_queue(check: Callable[..., Result], fifo_queue_url: str, sqs: Sqs) -> None:
    result = check(BACKGROUND_JOBS_QUEUE_URL=fifo_queue_url, **sqs.client_environment)
    assert result.of("queue") == [("ok", "answers (FIFO)")]


def test_no_credentials(check: Callable[..., Result], queue_url: str, tmp_path: Path) -> None:
    result = check(
        BACKGROUND_JOBS_QUEUE_URL=queue_url,
        AWS_EC2_METADATA_DISABLED="true",
        HOME=str(tmp_path),
        AWS_CONFIG_FILE="/none",
    )
    assert result.status == 1
    ((level, text),) = result.of("queue")
    assert level == "FAIL"
    assert "no AWS credentials were found" in text


def test_no_queue_service_there(check: Callable[..., Result], nobody: str, sqs: Sqs) -> None:
    variables = sqs.client_environment | {"AWS_ENDPOINT_URL": f"http://{nobody}"}
    result = check(BACKGROUND_JOBS_QUEUE_URL=f"http://{nobody}/1/jobs", **variables)
    assert result.status == 1
    assert result.of("queue")[0][0] == "FAIL"


# Hanging


def test_nothing_hangs(silent: str, sqs: Sqs) -> None:
    """All three take the connection and say nothing: it ends all the same, and says so of each."""
    began = time.monotonic()
    result = run(
        "--check",
        DATABASE_URL=f"postgres://u:hunter2@{silent}/x?sslmode=disable",
        REDIS_URL=f"redis://:hunter2@{silent}",
        BACKGROUND_JOBS_QUEUE_URL=f"http://{silent}/1/jobs",
        **(sqs.client_environment | {"AWS_ENDPOINT_URL": f"http://{silent}"}),
    )
    # Three times 5 s one after the other would be a hang; a loaded machine is not.
    assert time.monotonic() - began < 14
    assert result.status == 1
    assert [result.of(part)[0][0] for part in ("database", "redis", "queue")] == ["FAIL", "warn", "FAIL"]
    assert "hunter2" not in result.output + result.errors
