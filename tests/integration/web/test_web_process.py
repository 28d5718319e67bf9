"""The HTTP process as a whole: outages, rude clients, the end; `--check` and `--replay`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from relay.redis import keys
from scripts.database import apply_schema, create_database
from scripts.services import Postgres, Sqs, Valkey, Web, processes
from scripts.services.sns_double import TOPIC, SnsDouble, ses_message
from tests.integration.web.conftest import SECRET, Stage, settings_of
from tests.support.service_process import eventually

ROOT = Path(__file__).resolve().parents[3]
#: What stays in the queue is there again at once.
REPLAY = """
import sys
from relay.operator import notification_replay
notification_replay._VISIBILITY_SECONDS = 0
from scripts import web_with_double
raise SystemExit(web_with_double.main(*sys.argv[1:]))
"""
TO = "to@x.example"


@pytest.fixture
def own_stage(sns: SnsDouble, tmp_path: Path, redis_url: str) -> Iterator[tuple[Stage, Postgres]]:
    """A process of the test's own, with a Postgres that it may stop."""
    with Postgres(tmp_path / "postgres", durable=False) as postgres:
        url = create_database(postgres.url(), "web")
        apply_schema(url)
        with Web(tmp_path / "web", settings_of(url, redis_url), sns=(str(sns.cafile), sns.port)) as web:
            yield Stage(web, url, sns), postgres
        assert "Traceback" not in web.log, web.log


def test_while_postgres_is_away_clicks_are_followed_and_nothing_is_lost(
    own_stage: tuple[Stage, Postgres], redis_url: str
) -> None:
    stage, postgres = own_stage
    domain_id = stage.add_domain()
    emails = [stage.add_email() for _ in range(6)]
    bounces = [stage.sns.notification(ses_message("Bounce", email_id, [TO])) for email_id in emails]
    clicks = [stage.token(emailId=email_id, domainId=domain_id) for email_id in emails]
    assert stage.post(bounces[0]).status == 200
    postgres.stop()
    for token in clicks:
        assert stage.get(f"/api/track/click/{token}").status == 302
    for bounce in [*bounces, *bounces]:  # SNS repeats them
        assert stage.post(bounce).status == 503
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen(keys.KEPT_SES_KEY) == 6
        assert client.llen(keys.KEPT_TRACKING_KEY) == 6
        # The process that kept them may die: another process writes them.
        stage.web.kill()
        postgres.start()
        stage.web.start()
        eventually("written", lambda: client.llen(keys.KEPT_SES_KEY) + client.llen(keys.KEPT_TRACKING_KEY) == 0)
    for email_id in emails:
        assert [kind for kind, _ in stage.events(email_id)] == ["bounced", "email.clicked"]
        assert stage.status(email_id) == "bounced"
    for bounce in bounces:  # SNS comes again
        assert stage.post(bounce).status == 200
    assert stage.query("SELECT count(*) FROM email_events") == [(12,)]


def test_without_postgres_and_redis_events_wait_in_memory(
    sns: SnsDouble, tmp_path: Path, valkey_server: Valkey
) -> None:
    with Postgres(tmp_path / "postgres", durable=False) as postgres, Valkey(tmp_path / "valkey") as valkey:
        url = create_database(postgres.url(), "web")
        apply_schema(url)
        with Web(tmp_path / "web", settings_of(url, valkey.url), sns=(str(sns.cafile), sns.port)) as web:
            stage = Stage(web, url, sns)
            email_id, domain_id = stage.add_email(), stage.add_domain()
            assert stage.get(f"/api/track/click/{stage.token()}").status == 302
            postgres.stop()
            valkey.stop()
            for _ in range(3):
                token = stage.token(emailId=email_id, domainId=domain_id)
                assert stage.get(f"/api/track/click/{token}").status == 302
            postgres.start()
            eventually("written", lambda: len(stage.events(email_id)) == 3)


def test_a_process_that_is_killed_has_lost_no_event_that_it_answered(stage: Stage) -> None:
    """With several clients at a time, and SIGKILL at any moment."""
    domain_id = stage.add_domain()
    sent: list[tuple[str, str]] = []

    def click() -> None:
        for _ in range(30):
            email_id = stage.add_email()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if stage.get(f"/api/track/click/{stage.token(emailId=email_id, domainId=domain_id)}").status == 302:
                    sent.append(("email.clicked", email_id))
                if stage.post(stage.sns.notification(ses_message("Delivery", email_id, [TO]))).status == 200:
                    sent.append(("delivered", email_id))

    clients = [threading.Thread(target=click) for _ in range(4)]
    for client in clients:
        client.start()
    for _ in range(2):  # a master whose workers die again and again as soon as they start gives up
        seen = len(sent)
        eventually("events", lambda seen=seen: len(sent) >= seen + 10 or not any(c.is_alive() for c in clients))
        processes.kill(processes.serving(stage.web.pid))
    for client in clients:
        client.join()
    eventually("served again", lambda: answers(stage))
    recorded = set(
        stage.query("SELECT type, email_id::text FROM email_events WHERE type IN ('delivered', 'email.clicked')")
    )
    assert set(sent) - recorded == set()


def answers(stage: Stage) -> bool:
    with contextlib.suppress(OSError):
        return stage.get("/").status == 404
    return False


@contextlib.contextmanager
def raw(stage: Stage) -> Iterator[socket.socket]:
    with socket.create_connection((stage.web.host, stage.web.port), timeout=60) as client:
        yield client


def reply(client: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    octets = b""
    with contextlib.suppress(ConnectionResetError):
        while received := client.recv(65_536):
            octets += received
    return octets


@pytest.mark.parametrize(
    ("request_octets", "status"),
    [
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", b"4"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", b"4"),
        (b"GET / HTTP/1.1\r\nno colon\r\nContent-Length: 1\r\n\r\nx", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"\0\1\2\r\n\r\n", b"400"),
        (b"GET / HTTP/2.0\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n", b"400"),
        (b"POST /events/ses HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /events/ses HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST /events/ses HTTP/1.1\r\nContent-Length: 999999999999999999999\r\n\r\n", b"413"),
        (b"POST /events/ses HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"4"),
        (b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10, b"404"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000, b"404"),
        # A server that reads the second length finds a request that another does not see.
        (b"GET /x HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nGET /y HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /x HTTP/1.1\r\nContent-Length: +0\r\n\r\nGET /y HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /x HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\nGET /y HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /x HTTP/1.1\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\nGET /y HTTP/1.1\r\n\r\n", b"404"),
    ],
    ids=range(19),
)
def test_odd_requests_are_answered_once_and_are_the_last(stage: Stage, request_octets: bytes, status: bytes) -> None:
    with raw(stage) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(request_octets)
        answer = reply(client)
    # What arrives behind an answer makes the system throw it away on our side.
    if answer or len(request_octets) < 1000:
        assert answer.startswith(b"HTTP/1.1 " + status), answer
        assert answer.count(b"HTTP/1.1 ") == 1


def test_one_address_has_so_many_connections(sns: SnsDouble, tmp_path: Path, stage: Stage) -> None:
    settings = settings_of(stage.postgres_url, "") | {
        "SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS": "3",
        "SMTP_RELAY_HTTP_FORWARDED_FOR": None,
        "REDIS_URL": None,
    }
    with Web(tmp_path / "web", settings) as web, contextlib.ExitStack() as held:
        own = Stage(web, stage.postgres_url, sns)
        for _ in range(3):
            client = held.enter_context(raw(own))
            client.sendall(b"GET /x HTTP/1.1\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 404"
        with raw(own) as client:
            assert reply(client).startswith(b"HTTP/1.1 429 ")
        # The end: those that wait for nothing are closed, and the process ends by itself.
        web.stop()
        assert '"drained"' in web.log
        assert '"drain_timed_out"' not in web.log


def test_the_end_waits_for_what_is_being_answered(sns: SnsDouble, tmp_path: Path, stage: Stage) -> None:
    with Web(tmp_path / "web", settings_of(stage.postgres_url, ""), sns=(str(sns.cafile), sns.port)) as web:
        own = Stage(web, stage.postgres_url, sns)
        email_id = own.add_email()
        body = json.dumps(sns.notification(ses_message("Delivery", email_id, [TO]))).encode()
        head = "POST /events/ses HTTP/1.1\r\nx-amz-sns-message-type: Notification\r\nExpect: 100-continue\r\n"
        with raw(own) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            # Only then it is being answered: a connection on which nothing has been read is closed.
            assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
            client.sendall(body[:100])
            os.kill(web.pid, signal.SIGTERM)
            eventually("draining", lambda: '"draining"' in web.log)
            client.sendall(body[100:])
            assert reply(client).startswith(b"HTTP/1.1 200 ")
        eventually("ended", lambda: '"drained"' in web.log)
    assert own.events(email_id) != []


def run(command: list[str], settings: dict[str, str | None]) -> subprocess.CompletedProcess[str]:
    return run_python(["-m", *command], settings)


def run_python(arguments: list[str], settings: dict[str, str | None]) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {name: value for name, value in settings.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_check_says_what_is_there_and_what_is_missing(postgres_url: str, redis_url: str) -> None:
    good = run(["relay.web", "--check"], settings_of(postgres_url, redis_url) | {"SMTP_RELAY_HTTP_PORT": "8081"})
    # The first topic of the tests is none that Amazon would name so.
    assert good.returncode == 1, good.stdout
    assert "listening on 0.0.0.0:8081" in good.stdout
    assert "every statement of the process's works" in good.stdout
    assert f"those of {TOPIC} are accepted" in good.stdout
    bare = run(["relay.web", "--check"], {"DATABASE_URL": postgres_url})
    assert bare.returncode == 0, bare.stdout
    for missing in ("TRACKING_SECRET", "SES_EVENTS_SNS_TOPIC_ARN", "REDIS_URL"):
        assert f"{missing} is not set" in bare.stdout
    wrong = run(["relay.web", "--check"], {"DATABASE_URL": postgres_url, "SMTP_RELAY_HTTP_TLS": "true"})
    assert wrong.returncode == 2
    assert "SMTP_RELAY_HTTP_TLS is true" in wrong.stdout
    assert SECRET not in good.stdout


def test_what_is_in_a_dead_letter_queue_is_taken_up(stage: Stage, sqs: Sqs) -> None:
    """By a process that accepts its signer; what is not accepted stays there."""
    queue_url = sqs.create_queue(f"dead-{uuid.uuid4().hex}")
    email_id = stage.add_email()
    for body in (
        "no JSON",
        json.dumps(stage.sns.notification(ses_message("Delivery", email_id, [TO]))),
        json.dumps(stage.sns.notification(ses_message("Bounce", email_id, [TO]), TopicArn="arn:aws:sns:x:1:other")),
    ):
        sqs.client().send_message(QueueUrl=queue_url, MessageBody=body)
    settings = settings_of(stage.postgres_url, "") | sqs.client_environment
    replayed = run_python(["-c", REPLAY, str(stage.sns.cafile), str(stage.sns.port), "--replay", queue_url], settings)
    assert replayed.returncode == 1, replayed.stderr
    assert [line.split()[:2] for line in replayed.stdout.splitlines() if line[0] == " "] == [
        ["1", "200"],
        ["1", "400"],
        ["1", "403"],
    ]
    assert [kind for kind, _ in stage.events(email_id)] == ["delivered"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    left = sqs.client().get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    assert sum(map(int, left.values())) == 2
    usage = run(["relay.web", "--replay"], settings)
    assert (usage.returncode, "usage:" in usage.stderr) == (2, True)
