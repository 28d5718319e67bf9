"""A process that stands still while it is answered has the answer when it goes on, although the time for it is over.

Otherwise a mail would be sent once more that a provider has said yes to. The process is a real one, with the hub of
gevent in it: a timer that is over comes before what has arrived.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from scripts.services import processes
from tests.support.certificates import write_pair

#: Seconds that a call may take.
_SECONDS = 3.0

_PROGRAM = """
import json, os, socket, ssl, sys, time
import gevent
from relay.aws.https import HttpsClient
from relay.delivery.outbound_http import Outbound
from relay.delivery.smtp_client import SmtpConnection

aws, smtp, http, https, cafile, seconds = json.loads(sys.argv[1])
trusted = ssl.create_default_context(cafile=cafile)
trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
outbound = Outbound(is_routable=lambda _: True, resolve=lambda _host, _port: ["127.0.0.1"], context=trusted)

def to_aws():
    client = HttpsClient(f"http://127.0.0.1:{aws}/", cafile=None, connect_seconds=5.0, call_seconds=seconds)
    return client.post(b"x", {})[0]

def to_smart_host():
    connection = SmtpConnection(socket.create_connection(("127.0.0.1", smtp)))
    return connection.ask("NOOP", time.monotonic() + seconds).code

def to_webhook(scheme, port):
    url = f"{scheme}://localhost.example:{port}/"
    return outbound.request("POST", url, {}, b"x", receive=lambda _status, _octets: True, seconds=seconds)

calls = [(to_aws,), (to_smart_host,), (to_webhook, "http", http), (to_webhook, "https", https)]
for number, (call, *arguments) in enumerate(calls):
    # A process each: of several timers of one process it is the first that comes too soon.
    if os.fork() == 0:
        greenlet = gevent.spawn(call, *arguments)
        greenlet.join()
        answer = greenlet.value if greenlet.successful() else repr(greenlet.exception)
        os.write(1, f"{number} {answer}\\n".encode())
        os._exit(0)
for _ in calls:
    os.wait()
"""
_PATCHED = "from gevent import monkey; monkey.patch_all()\n"


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def test_an_answer_that_came_while_the_process_stood_still_is_taken(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path, name="localhost.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listeners = [_listen() for _ in range(4)]
    given = json.dumps([*map(_port, listeners), certificate, _SECONDS])
    program = subprocess.Popen(
        [sys.executable, "-c", _PATCHED + _PROGRAM, given], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    connections = []
    for listener in listeners:
        connection, _ = listener.accept()
        connections.append(
            context.wrap_socket(connection, server_side=True) if listener is listeners[3] else connection
        )
    for connection, end in zip(connections, (b"x", b"\r\n", b"x", b"x"), strict=True):
        asked = b""
        while not asked.endswith(end):
            asked += connection.recv(65_536)
    still = processes.children(program.pid)
    processes.send(still, signal.SIGSTOP)
    try:
        response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        for connection, answer in zip(connections, (response, b"250 Ok\r\n", response, response), strict=True):
            connection.sendall(answer)
        time.sleep(_SECONDS + 0.2)
    finally:
        processes.send(still, signal.SIGCONT)
    output, _ = program.communicate(timeout=60)
    for connection in [*connections, *listeners]:
        connection.close()
    assert sorted(output.splitlines()) == ["0 200", "1 250", "2 200", "3 200"]
