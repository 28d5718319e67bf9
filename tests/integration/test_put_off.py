"""Who is put off by a limit or by trouble of ours, and pipelines, is put off whole: over TCP, with a real relay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scripts.database import NewApiKey
from scripts.services import free_port
from tests.support.raw_client import Client
from tests.support.relay_process import Relay

MAIL, RCPT = "MAIL FROM:<a@example.com>", "RCPT TO:<c@d.example>"
CHUNK = "NOOP\r\n"


def batch(client: Client, *, chunks: bool) -> list[str]:
    """The codes of the replies to one message in one packet."""
    if chunks:
        client.socket.sendall(f"{MAIL}\r\n{RCPT}\r\nBDAT {len(CHUNK)}\r\n{CHUNK}BDAT 0 LAST\r\n".encode())
    else:
        client.socket.sendall(f"{MAIL}\r\n{RCPT}\r\n{RCPT}\r\nDATA\r\n".encode())
    return [client.reply()[:9] for _ in range(4)]


@pytest.mark.parametrize("setting", ["SMTP_RELAY_KEY_MESSAGES_PER_MINUTE", "SMTP_RELAY_ADDRESS_MESSAGES_PER_MINUTE"])
def test_a_limit_puts_off_the_whole_batch(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, setting: str
) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, **{setting: "1"})
    client = Client(relay)
    client.reply()
    assert client.auth(api_key.token).startswith("235")
    assert client.say(MAIL, "RSET").startswith("250")
    for chunks in (False, True, False):
        assert batch(client, chunks=chunks) == ["450 4.7.1"] * 4
    # What it does out of order without us is for it to mend.
    assert client.say("RSET", "DATA").startswith("503 5.5.1")
    assert client.say("QUIT").startswith("221")
    client.close()


def test_a_database_that_is_away_puts_off_the_whole_batch(start_relay: Callable[..., Relay]) -> None:
    relay = start_relay(DATABASE_URL=f"postgresql://relay@127.0.0.1:{free_port()}/none")
    client = Client(relay)
    client.reply()
    assert client.auth("os_live_unknown").startswith("454 4.7.0")
    for chunks in (False, True):
        assert batch(client, chunks=chunks) == ["451 4.7.0"] * 4
    assert client.say("QUIT").startswith("221")
    client.close()
