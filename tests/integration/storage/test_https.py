"""HTTP calls over connections that stay open, against servers on real sockets."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from relay.aws.https import CALL_ERRORS, HttpsClient, NotSentError, host_field
from relay.core.errors import TooLate


class Endpoint(http.server.ThreadingHTTPServer):
    """Remembers what was asked of it, and over how many connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = 0
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.closes = False
        #: Said behind each response, unasked.
        self.babble = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.server.closes:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        if self.server.babble:
            time.sleep(0.05)  # not with the response, which would swallow it
            self.wfile.write(self.server.babble)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def calls(url: str, call_seconds: float = 20.0) -> HttpsClient:
    return HttpsClient(url, cafile=None, connect_seconds=5.0, call_seconds=call_seconds)


def test_one_connection_serves_one_call_after_another(endpoint: Endpoint) -> None:
    made = calls(endpoint.url)
    assert [made.post(b"%d" % number, {"X-Number": str(number)})[:2] for number in range(3)] == [
        (200, b"0"),
        (200, b"1"),
        (200, b"2"),
    ]
    assert [headers["X-Number"] for _, _, headers, _ in endpoint.requests] == ["0", "1", "2"]
    assert endpoint.connections == 1
    made.close()


def test_a_connection_that_the_server_closes_is_not_used_again(endpoint: Endpoint) -> None:
    endpoint.closes = True
    made = calls(endpoint.url)
    assert [made.post(b"x", {})[0] for _ in range(3)] == [200, 200, 200]
    assert endpoint.connections == 3


def test_what_comes_unasked_is_never_the_answer_to_the_next_call(endpoint: Endpoint) -> None:
    endpoint.babble = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    made = calls(endpoint.url)
    answers = []
    for number in range(3):
        answers.append(made.post(b"%d" % number, {})[:2])
        assert made._idle[0][1].sock.recv(1, socket.MSG_PEEK) == b"H"  # it has arrived
    assert answers == [(200, b"0"), (200, b"1"), (200, b"2")]
    assert endpoint.connections == 3
    made.close()


def test_a_response_that_is_repeated_while_the_next_request_goes_out_is_not_the_answer_to_that() -> None:
    """It comes when the connection has been looked at; servers that name each request are found out all the same."""
    response = b"HTTP/1.1 200 OK\r\nX-Amzn-RequestId: %d\r\nContent-Length: 2\r\n\r\n{}"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(responses: list[bytes]) -> None:
            with server.accept()[0] as client:
                for each in responses:
                    head = b""
                    while not head.endswith(b"\r\n\r\nx"):
                        head += client.recv(1000)
                    client.sendall(each)
                client.recv(1)

        made = calls(f"http://127.0.0.1:{server.getsockname()[1]}/")
        for responses, answered in (
            ([response % 1, response % 2, response % 2], 2),  # the third is the second once more
            ([response % 4, response % 5], 2),
        ):
            thread = threading.Thread(target=serve, args=(responses,), daemon=True)
            thread.start()
            assert [made.post(b"x", {})[:2] for _ in range(answered)] == [(200, b"{}")] * answered
            if len(responses) > answered:
                with pytest.raises(ConnectionAbortedError):
                    made.post(b"x", {})
            made.close()
            thread.join()


def test_a_connection_that_the_server_left_is_not_used_again(endpoint: Endpoint) -> None:
    made = calls(endpoint.url)
    made.post(b"x", {})
    made._idle[0][1].sock.shutdown(socket.SHUT_RD)
    assert made.post(b"y", {})[:2] == (200, b"y")
    assert endpoint.connections == 2
    made.close()


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = calls(endpoint.url)
    made.post(b"x", {})
    monkeypatch.setattr("relay.aws.https._IDLE_SECONDS", -1.0)
    made.post(b"x", {})
    assert endpoint.connections == 2
    made.close()


class Script:
    """Answers each connection's first request with octets of the test's own, and hangs up."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            asked = b""
            while not asked.endswith(b"\r\n\r\nask"):
                asked += connection.recv(65_536)
            with contextlib.suppress(OSError):  # it need not wait for the end
                for piece in self._pieces:
                    connection.sendall(piece)
                    time.sleep(0.02)  # so that each is read by itself

    def call(self, call_seconds: float = 20.0) -> tuple[int, bytes]:
        made = calls(self.url, call_seconds)
        try:
            return made.post(b"ask", {"Host": host_field(self.url)})[:2]
        finally:
            made.close()
            self._thread.join()


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ([OK, b"Content-Len", b"gth: 6\r\n\r\nan", b"swe", b"r"], b"answer"),
        ([OK + b"content-length:0\r\n\r\n"], b""),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nans\r\n", b"3;x=y\r\nwer\r\n0\r\n\r\n"], b"answer"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 6\r\n\r\nanswer"], b"answer"),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", OK + b"Content-Length: 6\r\n\r\nanswer"], b"answer"),
        # Without a length it goes on until the connection's end, also when a second piece comes.
        ([OK + b"\r\nans", b"wer"], b"answer"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"\r\nans", b"wer"], b"answer"),
        ([b"HTTP/1.0 200 OK\r\n\r\nans", b"wer"], b"answer"),
    ],
)
def test_an_answer_is_read_whole_however_it_is_framed(pieces: list[bytes], answer: bytes) -> None:
    assert Script(*pieces).call() == (200, answer)


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [OK],
        [b"HTTP/1.1 100 Continue\r\n\r\n"],
        [OK + b"Content-Length: 7\r\n\r\nanswer"],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nans\r\n"],
        [OK + b"Content-Length: 6\r\n\r\nanswer" + OK + b"Content-Length: 6\r\n\r\nanswer"],
        [OK + b"Content-Length: 6\r\n\r\nanswer" + b"\0"],
        [OK + b"Content-Length: x\r\n\r\nanswer"],
        [b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"],
        [b"SSH-2.0-x\r\n"],
        [OK + b"\r\n", *[b"x" * 1024 * 1024] * 5],
        [OK + b"X: y\r\n", *[b"X: %b\r\n" % (b"y" * 1024 * 1024)] * 9],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1;%b\r\nx\r\n" % (b"y" * 1024 * 1024)] * 9],
        [b"HTTP/1.1 100 Continue\r\n\r\n"] * 9 + [OK + b"Content-Length: 6\r\n\r\nanswer"],
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK + b"Content-Length: 6\r\n\r\nanswer"],
    ],
    ids=lambda pieces: f"{len(pieces)}-pieces-of-{sum(map(len, pieces))}",
)
def test_what_is_no_whole_answer_is_an_error_of_the_call(pieces: list[bytes]) -> None:
    with pytest.raises(CALL_ERRORS):
        Script(*pieces).call()


_DRIBBLED = 10_000  # pieces, 0.02 s between them: minutes


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"HTTP/1.1 200 ", *[b"O"] * _DRIBBLED], id="a-status-line"),
        pytest.param([OK, *[b"X: y\r\n"] * _DRIBBLED], id="header-fields"),
        pytest.param([OK + b"Content-Length: 9999\r\n\r\n", *[b"x"] * _DRIBBLED], id="content"),
        pytest.param([OK + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * _DRIBBLED], id="chunks"),
        pytest.param([OK + b"\r\n", *[b"x"] * _DRIBBLED], id="content-to-the-end"),
        pytest.param([b"HTTP/1.1 100 Continue\r\nX:", *[b"y"] * _DRIBBLED], id="an-interim-response"),
    ],
)
def test_an_answer_that_dribbles_is_not_in_time(pieces: list[bytes]) -> None:
    """Each piece comes long before the limit, the whole long after it."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        Script(*pieces).call(call_seconds=0.5)
    assert time.monotonic() - began < 60


_PATCHED_CALL = """
from gevent import monkey; monkey.patch_all()
import sys
from relay.aws.https import HttpsClient
client = HttpsClient(sys.argv[1], cafile=None, connect_seconds=5.0, call_seconds=0.3)
try:
    client.post(b"x", {})
except TimeoutError:
    print("not in time")
"""


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n"])
def test_a_call_without_a_whole_answer_ends_in_time_with_gevent(said: bytes) -> None:
    """Where gevent's timer limits the wait for an answer, and no other; and for what is at hand behind that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        program = subprocess.Popen([sys.executable, "-c", _PATCHED_CALL, url], stdout=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            connection.sendall(said)
            try:
                assert program.communicate(timeout=10.0)[0] == "not in time\n"
            finally:
                program.kill()


def test_what_was_not_sent_is_distinguished_from_what_may_have_been_carried_out(endpoint: Endpoint) -> None:
    with pytest.raises(NotSentError) as refused:
        calls("http://127.0.0.1:9/").post(b"x", {})
    assert refused.value.code == "ConnectionRefusedError"
    with pytest.raises(OSError, match="closed before") as cut:
        Script().call()
    assert not isinstance(cut.value, NotSentError)


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        ("https://sqs.eu-central-1.amazonaws.com/", "sqs.eu-central-1.amazonaws.com"),
        ("https://sqs.example:443/", "sqs.example"),
        ("http://sqs.example:80/", "sqs.example"),
        ("http://sqs.example:443/", "sqs.example:443"),
        ("http://user:word@127.0.0.1:5000/", "127.0.0.1:5000"),
        ("http://[::1]:5000/", "[::1]:5000"),
    ],
)
def test_the_host_field_is_as_a_signature_has_it(endpoint: str, field: str) -> None:
    assert host_field(endpoint) == field


def test_a_refused_connection_is_an_error_of_the_call(endpoint: Endpoint) -> None:
    with pytest.raises(CALL_ERRORS):
        calls("http://127.0.0.1:9/").post(b"x", {})


@pytest.mark.parametrize("url", ["ftp://x/", "nothing", "http://", "http://h:99999/", "http://h:x/"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        calls(url)


@pytest.mark.parametrize("url", ["ftp://x/", "nothing", "http://"])
def test_what_is_no_url_has_no_host_field(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        host_field(url)


def test_who_is_too_late_sends_nothing_and_keeps_the_connection(endpoint: Endpoint) -> None:
    client = HttpsClient(endpoint.url, cafile=None, connect_seconds=2, call_seconds=2)

    def late() -> None:
        raise TooLate(1.0)

    for _ in range(2):  # on a new connection, and on one that is kept
        with pytest.raises(TooLate):
            client.post(b"x", {}, ready=late)
    assert endpoint.requests == []
    assert client.post(b"x", {}, ready=lambda: None).status == 200
    assert (len(endpoint.requests), endpoint.connections) == (1, 1)
    client.close()


def test_what_ends_while_a_call_waits_to_be_ready_is_not_sent(endpoint: Endpoint) -> None:
    """Whatever limit ends the wait: the other side has nothing of the request, and it is not unclear whether it has."""
    client = calls(endpoint.url, call_seconds=0.2)
    with pytest.raises(NotSentError):
        client.post(b"x", {}, ready=lambda: gevent.sleep(60))
    client.close()
    assert endpoint.requests == []


def test_a_connection_that_is_closed_while_a_call_waits_to_be_ready_is_replaced() -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        sock.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        client = calls(f"http://127.0.0.1:{server.getsockname()[1]}/")
        threads: list[threading.Thread] = []

        def ready() -> None:
            accepted, _ = server.accept()
            accepted.close()
            threads.append(threading.Thread(target=lambda: answer(server.accept()[0]), daemon=True))
            threads[0].start()

        assert client.post(b"x", {}, ready=ready).status == 200
        client.close()
        threads[0].join()
