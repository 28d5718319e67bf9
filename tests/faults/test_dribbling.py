"""An octet every while: each wait has a deadline for the whole of it, which no octet moves.

Told by how far a client gets, which sends for several times as long as it may take, and not by a clock. What dribbles
at us from Redis, Postgres and the queue is in the tables of faults beside this file.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from relay.server.trusted_proxies import HEADER_SECONDS
from tests.faults.stage import wait_until
from tests.support.dialogue_stage import Stage
from tests.support.sockets import read_to_end

#: What a client has for a handshake and for the data of a message; seconds.
SECONDS = 2.0
#: Between two octets: far less than that.
PAUSE = 0.05
LOGIN = b"EHLO x\r\nAUTH PLAIN " + base64.b64encode(b"\0user\0good") + b"\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
SPOOLED = 20_000


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    pace = {"handshake": SECONDS, "data_grace": SECONDS, "data_pause": SECONDS, "login": SECONDS, "command": 60.0}
    settings = {"spool_threshold_bytes": SPOOLED // 2}
    servers = {
        "encrypted": {"settings": settings, "tls": True, "pace": pace},
        "clear": {"settings": settings, "pace": pace},
        "behind a proxy": {"settings": settings | {"proxy_protocol": "127.0.0.1"}, "pace": pace},
    }
    with Stage(tmp_path_factory.mktemp("stage"), servers, linger_seconds=0.5) as made:
        yield made
        assert "Traceback" not in made.log()


def dribble(client: socket.socket, octets: bytes) -> tuple[int, bytes]:
    """How many octets went out before the other side closed, and what it said last."""
    sent, said = 0, b""
    client.settimeout(PAUSE)
    with contextlib.suppress(ConnectionError):
        for octet in octets:
            client.sendall(bytes([octet]))
            sent += 1
            with contextlib.suppress(TimeoutError):
                heard = client.recv(4096)
                said += heard
                if not heard:
                    break
    return sent, said


def hello() -> bytes:
    """A ClientHello: some 500 octets, so half a minute at this pace."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    octets = outgoing.read()
    assert len(octets) * PAUSE > 5 * SECONDS
    return octets


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit TLS", "STARTTLS"])
def test_a_handshake_that_dribbles_is_not_waited_for(stage: Stage, implicit: bool) -> None:
    octets = hello()
    port = stage._ports["encrypted"]["implicit" if implicit else "clear"]
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        if not implicit:
            client.sendall(b"EHLO x\r\nSTARTTLS\r\n")
            heard = b""
            while b"\r\n220 " not in heard:
                heard += client.recv(4096)
        sent, said = dribble(client, octets)
    assert sent < len(octets)
    assert said == b""


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP6 2001:db8:0000:0000:0000:0000:0000:0001 2001:db8:0000:0000:0000:0000:0000:0002 40000 25\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", 4000) + bytes(4000),
    ],
    ids=["version 1", "version 2"],
)
def test_a_proxy_header_that_dribbles_is_not_waited_for(stage: Stage, header: bytes) -> None:
    # At this pace a header of version 1 takes as long as it may: the proxy is slower still.
    pauses = 1 if len(header) > 1000 else 5
    octets = header if pauses == 1 else header[:-2]
    with stage.connect("behind a proxy") as client:
        client.settimeout(PAUSE * pauses)
        sent = 0
        with contextlib.suppress(ConnectionError):
            for octet in octets:
                client.sendall(bytes([octet]))
                sent += 1
                with contextlib.suppress(TimeoutError):
                    if not client.recv(4096).startswith(b"421"):
                        break
    assert len(octets) * PAUSE * pauses > 3 * HEADER_SECONDS
    assert sent < len(octets)


def spooled_files(stage: Stage) -> list[str]:
    """The files without a name in the spool that the process has open."""
    folder = Path("/proc", str(stage.pid), "fd")
    found = []
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            found.append(os.readlink(folder / name))
    return [path for path in found if path.startswith(str(stage._directory)) and "(deleted)" in path]


@pytest.mark.parametrize("command", [b"DATA\r\n", b"BDAT 1000000 LAST\r\n"], ids=["DATA", "BDAT"])
def test_data_that_dribbles_into_the_spool_is_not_waited_for_and_leaves_no_file(stage: Stage, command: bytes) -> None:
    # A fiftieth of the rate that is asked for: an octet buys a thousandth of a second.
    dribbled = bytes(2000)
    with stage.connect("clear") as client:
        client.sendall(LOGIN + ENVELOPE + command)
        client.sendall((b"x" * 98 + b"\r\n") * (SPOOLED // 100))
        wait_until(lambda: len(spooled_files(stage)) == 1, "the message is in the spool", seconds=20)
        sent, said = dribble(client, dribbled)
        assert sent < len(dribbled)
        assert said.endswith(b"421 4.4.2 Timed out waiting for the client\r\n")
        wait_until(lambda: not spooled_files(stage), "its file is closed", seconds=20)
    assert stage.newly_accepted() == []


def test_a_client_that_takes_replies_an_octet_at_a_time_is_cut_off(stage: Stage) -> None:
    """Each octet that it takes lets another one be sent: the time is for all of the replies."""
    process = psutil.Process(stage.pid)
    with stage.connect("clear") as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(LOGIN)
        client.settimeout(1.0)
        with contextlib.suppress(OSError):
            while True:
                client.sendall(b"EHLO c.example\r\n" * 1000)
        port = client.getsockname()[1]

        def connected() -> bool:
            with contextlib.suppress(OSError):
                client.recv(1)
            return any(
                each.raddr and each.raddr.port == port and each.status == psutil.CONN_ESTABLISHED
                for each in process.net_connections()
            )

        wait_until(lambda: not connected(), "it is cut off", seconds=40)


def test_others_are_served_meanwhile(stage: Stage) -> None:
    """All of them at once: a mail of another client goes through, from first to last."""
    with contextlib.ExitStack() as stack:
        for name in ("clear", "encrypted", "behind a proxy"):
            for _ in range(10):
                stack.enter_context(stage.connect(name)).sendall(b"\x16" if name == "encrypted" else b"P")
        with stage.connect("clear") as client:
            client.settimeout(20)
            client.sendall(LOGIN + ENVELOPE + b"DATA\r\nSubject: quick\r\n\r\nHello\r\n.\r\nQUIT\r\n")
            assert b"\r\n250 2.0.0 Ok: queued" in read_to_end(client)
