"""`python -m relay.delivery --check`: what is missing is said, so that it can be mended, and nothing stays."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from relay import __version__
from scripts.database import execute
from scripts.services import Ses, Sqs, free_port
from tests.support import program
from tests.support.program import Result

Query = Callable[..., list[tuple[Any, ...]]]


run = functools.partial(program.run, "relay.delivery")


@pytest.fixture
def check(postgres_url: str, ses: Ses) -> Callable[..., Result]:
    """Runs the check with good settings, but for the variables given."""

    def check(**variables: str) -> Result:
        for _ in range(5):
            result = run("--check", **({"DATABASE_URL": postgres_url} | ses.client_environment | variables))
            if not re.search(r"in time|no answer|Timeout", result.output):
                break  # a machine that has other work to do may be too slow for the check's own limits
        assert result.errors == ""
        assert "Traceback" not in result.output
        return result

    return check


class Gate:
    """Stands before the queue and denies actions, as a policy would; a stand-in, since moto denies nothing."""

    def __init__(self, upstream: str) -> None:
        self.denied: set[str] = set()
        gate = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                action = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
                if action in gate.denied:
                    document = {"__type": "com.amazon.coral.service#AccessDeniedException", "message": "secret arn"}
                    self._answer(400, json.dumps(document).encode())
                    return
                names = ("Content-Type", "X-Amz-Target", "Authorization", "X-Amz-Date")
                headers = {name: self.headers[name] for name in names if name in self.headers}
                request = urllib.request.Request(upstream, body, headers)
                try:
                    with urllib.request.urlopen(request) as response:
                        self._answer(response.status, response.read())
                except urllib.error.HTTPError as error:
                    self._answer(error.code, error.read())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Calls are no news."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def gate(sqs: Sqs) -> Iterator[Gate]:
    gate = Gate(sqs.endpoint)
    yield gate
    gate.server.shutdown()
    gate.server.server_close()


def new_queue(sqs: Sqs, suffix: str = "", *, redrives: bool = True) -> str:
    client, attributes = sqs.client(), {"FifoQueue": "true"} if suffix else {}
    if redrives:
        dead = client.create_queue(QueueName=f"d{uuid.uuid4().hex}{suffix}", Attributes=attributes)["QueueUrl"]
        arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 5})
        attributes = attributes | {"RedrivePolicy": policy}
    url: str = client.create_queue(QueueName=f"q{uuid.uuid4().hex}{suffix}", Attributes=attributes)["QueueUrl"]
    return url


def test_arguments() -> None:
    assert run("--version").output == f"opensend-relay {__version__}\n"
    assert "--check" in run("--help").output
    wrong = run("--chekc")
    assert (wrong.status, wrong.output) == (2, "")
    assert "usage:" in wrong.errors


def test_all_well_and_nothing_stays(
    check: Callable[..., Result], gate: Gate, sqs: Sqs, ses: Ses, query: Query, redis_url: str
) -> None:
    url = new_queue(sqs)
    sqs.client().send_message(QueueUrl=url, MessageBody="a job")
    result = check(
        AWS_ENDPOINT_URL_SQS=gate.endpoint,
        BACKGROUND_JOBS_QUEUE_URL=url,
        REDIS_URL=redis_url,
        TRACKING_SECRET="sixteen characters",
        APP_URL="https://app.example/x",
    )
    assert [line.split()[:2] for line in result.output.splitlines()] == [
        ["ok", part] for part in ("settings", "tracking", "events", "database", "redis", "queue", "ses", "webhooks")
    ]
    assert result.status == 0
    assert result.of("ses") == [("ok", "us-east-1: takes mail, 10000 recipients a second")]
    assert ses.taken() == []
    (message,) = sqs.client().receive_message(QueueUrl=url, AttributeNames=["All"])["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"  # the check has not received it
    for table in ("emails", "email_events", "email_suppressions", "webhook_deliveries"):
        assert query(f"SELECT count(*) FROM {table}") == [(0,)]
    with redis.Redis.from_url(redis_url) as client:
        assert {name for name in client.scan_iter() if not name.startswith(b"smtp-relay:webhooks:wakes")} == set()


def test_redis_that_is_away_warns_with_what_is_lost_and_one_that_refuses_fails(
    check: Callable[..., Result], redis_url: str
) -> None:
    lost = "after a crash it is not known which mails the provider has; the rate is divided by SMTP_RELAY_PACE_SHARES"
    without = check()
    assert without.of("redis") == [("warn", f"REDIS_URL is not set: {lost}")]
    away = check(REDIS_URL=f"redis://:hunter2@127.0.0.1:{free_port()}")
    assert (away.status, away.of("redis")) == (0, [("warn", f"the connection was refused; {lost}")])
    wrong = check(REDIS_URL=redis_url.replace("redis://", "redis://:hunter2@"))
    assert (wrong.status, wrong.of("redis")) == (1, [("FAIL", f"user or password is wrong; {lost}")])
    assert "hunter2" not in away.output + wrong.output


def test_the_least(check: Callable[..., Result]) -> None:
    result = check()
    assert result.status == 0
    assert result.of("tracking") == [("ok", "TRACKING_SECRET is not set: nothing is tracked")]
    assert [level for level, _ in result.of("events")] == ["ok"]
    assert result.of("webhooks") == [("ok", "no active webhook has a signing secret")]


@pytest.mark.parametrize("action", ["ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility"])
def test_a_right_at_the_queue_that_is_missing_is_named(
    check: Callable[..., Result], gate: Gate, sqs: Sqs, action: str
) -> None:
    gate.denied = {action}
    result = check(AWS_ENDPOINT_URL_SQS=gate.endpoint, BACKGROUND_JOBS_QUEUE_URL=new_queue(sqs))
    assert result.of("queue") == [("FAIL", f"the role may not call sqs:{action}")]
    assert result.status == 1


def test_that_the_queues_attributes_may_not_be_asked_is_a_warning(
    check: Callable[..., Result], gate: Gate, sqs: Sqs
) -> None:
    gate.denied = {"GetQueueAttributes"}
    result = check(AWS_ENDPOINT_URL_SQS=gate.endpoint, BACKGROUND_JOBS_QUEUE_URL=new_queue(sqs, ".fifo"))
    assert result.status == 0
    assert result.of("queue") == [
        ("warn", "the role may not call sqs:GetQueueAttributes; messages that are not jobs are deleted"),
        ("ok", "answers (FIFO)"),
    ]


def test_a_queue_without_a_redrive_policy_is_a_warning(check: Callable[..., Result], gate: Gate, sqs: Sqs) -> None:
    result = check(AWS_ENDPOINT_URL_SQS=gate.endpoint, BACKGROUND_JOBS_QUEUE_URL=new_queue(sqs, redrives=False))
    assert result.of("queue")[0] == (
        "warn",
        "has no redrive policy: messages that are not jobs are received again and again",
    )


def test_a_queue_that_is_not_there_fails(check: Callable[..., Result], gate: Gate, sqs: Sqs) -> None:
    result = check(AWS_ENDPOINT_URL_SQS=gate.endpoint, BACKGROUND_JOBS_QUEUE_URL=new_queue(sqs) + "x")
    assert result.of("queue")[0][0] == "FAIL"
    assert "there is no such queue" in result.of("queue")[0][1]
    nobody = check(
        AWS_ENDPOINT_URL_SQS=f"http://127.0.0.1:{free_port()}", BACKGROUND_JOBS_QUEUE_URL="http://127.0.0.1/1/q"
    )
    assert nobody.of("queue")[0][0] == "FAIL"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            {
                "code": "AccessDeniedException",
                "message": "ann@x.example is not authorized to perform: ses:SendEmail",
            },
            "us-east-1: the role may not call ses:SendEmail",
        ),
        (
            {"code": "AccessDeniedException", "message": "arn:aws:ses:us-east-1:1:identity/x.example"},
            "us-east-1: the role may not call ses:SendRawEmail",
        ),
        (
            {"code": "UnrecognizedClientException", "message": "no"},
            "us-east-1: the credentials are refused (UnrecognizedClientException)",
        ),
        (
            {"code": "SendingPausedException", "message": "no"},
            "us-east-1: sending is paused for the account (SendingPausedException)",
        ),
    ],
)
def test_what_ses_refuses_is_said(check: Callable[..., Result], ses: Ses, answer: dict[str, str], said: str) -> None:
    ses.answer(*[{"status": 403, **answer}] * 5)
    result = check()
    assert result.of("ses") == [("FAIL", said)]
    assert result.status == 1
    assert "x.example" not in result.output


def test_the_regions_of_the_domains_are_asked(check: Callable[..., Result], ses: Ses, query: Query) -> None:
    for region in ("eu-west-1", "no region at all/"):
        query(
            "INSERT INTO domains (id, name, status, region, user_id) VALUES (%s, %s, 'verified', %s, 'user')",
            str(uuid.uuid4()),
            f"{uuid.uuid4().hex}.example",
            region,
        )
    result = check()
    assert ("ok", "eu-west-1: takes mail, 10000 recipients a second") in result.of("ses")
    assert ("ok", "us-east-1: takes mail, 10000 recipients a second") in result.of("ses")
    assert [level for level, text in result.of("ses") if text.startswith("no region")] == ["FAIL"]


def test_ses_that_can_not_be_reached_fails(check: Callable[..., Result]) -> None:
    result = check(AWS_ENDPOINT_URL_SESV2=f"http://127.0.0.1:{free_port()}")
    assert result.of("ses") == [("FAIL", "us-east-1: the connection was refused")]


def test_row_level_security_warns_and_a_missing_right_fails(check: Callable[..., Result], postgres_url: str) -> None:
    name = f"weak_{uuid.uuid4().hex}"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    for table in ("emails", "domains", "email_suppressions", "email_events", "webhooks", "webhook_deliveries"):
        execute(postgres_url, f"GRANT SELECT, INSERT, UPDATE ON {table} TO {name}")
    execute(postgres_url, "ALTER TABLE emails ENABLE ROW LEVEL SECURITY")
    scheme, _, rest = postgres_url.partition("://")
    url = f"{scheme}://{name}:{name}@{rest.rpartition('@')[2]}"
    text = "emails: row-level security is on for this role, and may hide rows from it"
    assert check(DATABASE_URL=url).of("database") == [("warn", text)]
    execute(postgres_url, f"REVOKE INSERT ON email_events FROM {name}")
    assert ("FAIL", "email_events.payload: the role may not INSERT") in check(DATABASE_URL=url).of("database")
    execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize(("folder", "level"), [("mails", "warn"), ("file/mails", "FAIL")])
def test_maildir(check: Callable[..., Result], tmp_path: Path, folder: str, level: str) -> None:
    (tmp_path / "file").write_text("")
    result = check(SMTP_RELAY_PROVIDER="maildir", SMTP_RELAY_MAILDIR=str(tmp_path / folder))
    assert [found for found, _ in result.of("maildir")] == [level]
    assert not (tmp_path / "mails").exists()


def test_settings_that_lead_to_trouble(check: Callable[..., Result]) -> None:
    result = check(
        TRACKING_SECRET="short",
        SMTP_RELAY_METRICS_PORT="9100",
        WEB_CONCURRENCY="4",
        SMTP_RELAY_DELIVERY_METRICS_PORT="9103",
    )
    assert result.of("metrics")[0][0] == "warn"
    assert [level for level, _ in result.of("tracking")] == ["warn", "warn"]
    wrong = run("--check", DATABASE_URL="nonsense")
    assert (wrong.status, wrong.of("settings")[0][0]) == (2, "FAIL")
