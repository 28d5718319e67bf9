"""A client that writes a message line by line, as most mail libraries do, is not made to wait for acknowledgements."""

from __future__ import annotations

import smtplib
import time

from scripts.database import NewApiKey
from tests.support.relay_process import Relay

MESSAGE = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: s\r\n\r\n" + b"Hello\r\n" * 6 + b".\r\n"


def test_many_small_writes_cost_no_delayed_acknowledgement(relay: Relay, api_key: NewApiKey) -> None:
    """Against the same messages in one write each, in turn: a kernel's delay of 40 ms a mail is ten times a mail."""
    seconds = {"at once": 0.0, "by line": 0.0}
    with relay.client(api_key.token) as client:
        for _ in range(40):
            for manner in seconds:
                began = time.monotonic()
                _send(client, MESSAGE.splitlines(keepends=True) if manner == "by line" else [MESSAGE])
                seconds[manner] += time.monotonic() - began
    assert seconds["by line"] < 4 * seconds["at once"], seconds


def _send(client: smtplib.SMTP, pieces: list[bytes]) -> None:
    client.mail("ann@example.com")
    client.rcpt("to@x.example")
    client.docmd("DATA")
    assert client.sock is not None
    for piece in pieces:
        client.sock.sendall(piece)
    assert client.getreply()[0] == 250
