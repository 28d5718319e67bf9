"""Credentials that come late, change, or are refused: each call looks for them anew, and its error is one word."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from relay.aws.service import AwsService
from relay.aws.sqs import Queue
from relay.core.errors import QueueUnavailable
from relay.operator import ses_probe

GOOD = {"Version": 1, "AccessKeyId": "program", "SecretAccessKey": "secret"}


class Endpoint(http.server.ThreadingHTTPServer):
    """SQS, which takes everything, and STS, which refuses every role. Knows whom it believes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.believed: set[str] = {"program"}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if b"AssumeRole" in body:
            self._answer(403, b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>")
            return
        if not any(f"Credential={key}/" in self.headers["Authorization"] for key in self.server.believed):
            self._answer(403, b'{"__type":"com.amazonaws.sqs#InvalidClientTokenId"}')
            return
        entries = json.loads(body)["Entries"]
        self._answer(200, json.dumps({"Successful": [{"Id": entry["Id"]} for entry in entries]}).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' output."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint) -> Callable[[str], None]:
    """Replaces the program that gives credentials: `program("print(…)")`; it is missing to begin with."""
    path = tmp_path / "program"
    profiles = tmp_path / "config"
    profiles.write_text(
        f"[profile p]\ncredential_process = {path}\n"
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = p\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profiles))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_PROFILE", "p")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    def replace(code: str) -> None:
        path.write_text(f"#!{sys.executable}\n{code}\n")
        path.chmod(0o700)

    return replace


def printing(**credentials: object) -> str:
    return f"print({json.dumps(json.dumps({**GOOD, **credentials}))})"


def send(queue: Queue) -> dict[str, str]:
    return queue.send([{"Id": "1", "MessageBody": "x"}])


def code_of(queue: Queue) -> str:
    with pytest.raises(QueueUnavailable) as unavailable:
        send(queue)
    assert not unavailable.value.unclear
    return unavailable.value.code


BROKEN = {
    "missing": (None, "FileNotFoundError"),
    "failing": ("raise SystemExit(1)", "CredentialRetrievalError"),
    "saying nothing": ("", "JSONDecodeError"),
    "saying something else": ("print('[]')", "AttributeError"),
    "without a key": ("print('{\"Version\": 1}')", "CredentialRetrievalError"),
    "of another version": (printing(Version=2), "CredentialRetrievalError"),
    "not UTF-8": ("import sys; sys.stdout.buffer.write(b'\\xff')", "UnicodeDecodeError"),
    "expired": (printing(Expiration="2020-01-01T00:00:00+00:00"), "RuntimeError"),
    "with a time that is none": (printing(Expiration="tomorrow, or later"), "ParserError"),
    "with null for a key": (printing(AccessKeyId=None), "CredentialRetrievalError"),
    "with a list for a token": (printing(SessionToken=["t"]), "CredentialRetrievalError"),
    "with a line end in a key": (printing(AccessKeyId="key\n"), "CredentialRetrievalError"),
    "without end": ("while True: print('x' * 10000)", "ValueError"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_whatever_a_program_does_the_next_call_asks_again(program: Callable[[str], None], broken: str) -> None:
    code, expected = BROKEN[broken]
    if code is not None:
        program(code)
    queue = Queue("http://queue.example/1/jobs", "us-east-1")
    assert [code_of(queue) for _ in range(2)] == [expected] * 2
    program(printing())
    assert send(queue) == {}
    queue.close()


@pytest.mark.parametrize("broken", ["saying something else", "with null for a key", "with a list for a token"])
def test_whatever_a_program_prints_the_check_of_ses_says_it_in_a_line(
    program: Callable[[str], None], broken: str
) -> None:
    code, _ = BROKEN[broken]
    program(code or "")
    ((level, part, text),) = ses_probe.findings(["us-east-1"], seconds=5.0)
    assert (level, part) == ("FAIL", "ses")
    assert text.startswith("us-east-1: ")


def test_a_program_that_prints_without_end_is_ended(program: Callable[[str], None], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program(f"import os; open({str(pid)!r}, 'w').write(str(os.getpid()))\nwhile True: print('x' * 10000)")
    assert code_of(Queue("http://queue.example/1/jobs", "us-east-1")) == "ValueError"
    assert not psutil.pid_exists(int(pid.read_text()))


def test_keys_that_aws_refuses_are_looked_up_again(
    program: Callable[[str], None], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without an expiry is asked once, until what it said is refused; and then not for each call."""
    program(printing())
    queue = Queue("http://queue.example/1/jobs", "us-east-1")
    assert send(queue) == {}
    endpoint.believed = {"another"}
    program(printing(AccessKeyId="another"))
    assert code_of(queue) == "InvalidClientTokenId"
    assert code_of(queue) == "InvalidClientTokenId"
    monkeypatch.setattr(AwsService, "trust_seconds", -1.0)
    assert code_of(queue) == "InvalidClientTokenId"
    assert send(queue) == {}
    queue.close()


def test_a_role_that_is_refused_is_its_code(program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    program(printing())
    monkeypatch.setenv("AWS_PROFILE", "role")
    queue = Queue("http://queue.example/1/jobs", "us-east-1")
    assert [code_of(queue) for _ in range(2)] == ["AccessDenied"] * 2


def test_nothing_is_asked_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    began = time.process_time()
    queue = Queue("http://queue.example/1/jobs.fifo", "us-east-1")
    assert queue.fifo
    queue.close()
    assert time.process_time() - began < 0.05
    assert code_of(queue) == "ProfileNotFound"
