"""Calls of AWS where the environment names an HTTP proxy: it gets each request whole, and as it was signed."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from hashlib import sha256

import pytest

from relay.aws.service import AwsService, CallError
from scripts.services import free_port

ENDPOINT = "http://sqs.example:1234"
FIELDS = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "AmazonSQS.SendMessageBatch"}


class Pieces:
    """A body of several pieces."""

    size = 3_000_000

    def pieces(self) -> Iterator[bytes]:
        yield from (bytes([number]) * 1_000_000 for number in range(3))


class Proxy(http.server.ThreadingHTTPServer):
    """Answers in the place of the service that a request names; a stand-in for the two."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.requestline, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "13")
        self.end_headers()
        self.wfile.write(b'{"said":true}')

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' output."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    server = Proxy()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", ENDPOINT)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield server
    server.shutdown()
    server.server_close()


def service() -> AwsService:
    return AwsService("sqs", "us-east-1", path="/", open_seconds=30.0, connect_seconds=30.0, call_seconds=30.0)


@pytest.mark.parametrize("body", [b"{}", b"", Pieces()], ids=["small", "empty", "in pieces"])
def test_a_request_reaches_the_proxy_as_it_was_signed(proxy: Proxy, body: bytes | Pieces) -> None:
    calls = service()
    response = calls.call(body, FIELDS)
    calls.close()
    assert (response.status, response.document) == (200, {"said": True})
    ((line, fields, octets),) = proxy.requests
    assert line == f"POST {ENDPOINT}/ HTTP/1.1"
    assert octets == (body if isinstance(body, bytes) else b"".join(body.pieces()))
    fields = {name.lower(): value for name, value in fields.items()}
    assert fields["content-length"] == str(len(octets))
    assert "transfer-encoding" not in fields
    assert fields["x-amz-content-sha256"] == sha256(octets).hexdigest()
    assert fields["host"] == "sqs.example:1234"
    signed = fields["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-date", "x-amz-target"} <= set(signed) <= fields.keys()


def test_a_proxy_that_is_away_has_nothing_of_the_request(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setenv("http_proxy", nobody)
    with pytest.raises(CallError) as error:
        service().call(b"{}", FIELDS)
    assert not error.value.unclear
    assert proxy.requests == []
