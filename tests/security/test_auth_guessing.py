"""Guessing at keys: ever slower, then refused, over all connections and processes; and who may still come in."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import smtplib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.database import NewApiKey
from scripts.services import Valkey, free_port
from tests.support.relay_process import Relay, frozen

Start = Callable[..., Relay]


def attempt(relay: Relay, token: str, address: str) -> int:
    """The code of the reply to one AUTH, on a separate connection."""
    with smtplib.SMTP(timeout=30, source_address=(address, 0)) as client:
        client.connect(relay.host, relay.port)
        client.ehlo("client.example")
        client.user, client.password = "user", token
        return client.auth("PLAIN", client.auth_plain)[0] if client.sock else 0


def code(relay: Relay, token: str, address: str = "127.0.0.1") -> int:
    """As `attempt`, whatever it is."""
    try:
        return attempt(relay, token, address)
    except smtplib.SMTPResponseException as refused:
        return refused.smtp_code
    except smtplib.SMTPServerDisconnected:
        return 421  # said at the end of the connection, which the client library noticed first


@pytest.fixture
def start(start_relay: Start, postgres_url: str, redis_url: str) -> Start:
    """Relays that refuse after three wrong keys and keep no reply back for long."""

    def start(**settings: str) -> Relay:
        quick = {"SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS": "3", "SMTP_RELAY_AUTH_DELAY_SECONDS": "0.5"}
        return start_relay(**({"DATABASE_URL": postgres_url, "REDIS_URL": redis_url} | quick | settings))

    return start


def guess(relay: Relay, count: int = 3, address: str = "127.0.0.1") -> list[int]:
    """Different wrong keys."""
    return [code(relay, f"os_live_wrong_{number}_{address}", address) for number in range(count)]


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("kind", ["redis", "alone"])
def test_a_guesser_is_refused_and_good_keys_are_not(kind: str, start: Start, api_key: NewApiKey) -> None:
    relay = start() if kind == "redis" else start(REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert code(relay, api_key.token) == 235
    assert guess(relay) == [535] * 3
    assert guess(relay, 2) == [421] * 2
    # Known here before, or not: sooner or later in, while the guesser goes on.
    assert code(relay, api_key.token) == 235
    assert code(relay, api_key.token, "127.0.0.2") == 235
    assert guess(relay, 1, "127.0.0.2") == [535]
    # No log line tells who it was.
    lines = [json.loads(line) for line in relay.log.splitlines()]
    assert [line["event"] for line in lines].count("origin_refused") == 1
    assert "os_live" not in relay.log


def test_a_good_key_that_is_new_at_an_address_gets_in_beside_a_guesser(start: Start, api_key: NewApiKey) -> None:
    relay = start()
    assert guess(relay) == [535] * 3
    with concurrent.futures.ThreadPoolExecutor(4) as guessers:
        wrong = [guessers.submit(code, relay, f"os_live_wrong_{number}") for number in range(60)]
        eventually(lambda: code(relay, api_key.token) == 235)
        # And from then on at once.
        assert [code(relay, api_key.token) for _ in range(5)] == [235] * 5
        for future in wrong:
            future.cancel()
    assert {future.result() for future in wrong if not future.cancelled()} == {421}


def test_what_one_relay_saw_another_one_knows(start: Start, api_key: NewApiKey) -> None:
    relays = [start(WEB_CONCURRENCY="2"), start()]
    assert code(relays[0], api_key.token) == 235
    answers = [code(relays[number % 2], f"os_live_wrong_{number}") for number in range(3)]
    assert answers == [535] * 3
    assert code(relays[0], "os_live_wrong_9") == 421
    assert code(relays[1], "os_live_wrong_9") == 421
    assert code(relays[1], api_key.token) == 235


def test_a_device_with_an_old_key_locks_out_no_other_client(start: Start, api_key: NewApiKey) -> None:
    relay = start()
    assert [code(relay, "os_live_old_key") for _ in range(12)] == [535] * 12
    assert code(relay, api_key.token) == 235


def test_a_revoked_key_is_a_wrong_key(
    start: Start, api_key: NewApiKey, postgres_url: str, query: Callable[..., object]
) -> None:
    """Same reply, kept back for as long; which is the point of keeping it back."""
    relay = start(SMTP_RELAY_AUTH_DELAY_SECONDS="16")  # 0.5 s for the first failure
    query("DELETE FROM api_keys")
    for number, token in enumerate((api_key.token, "os_live_unknown", "", "x" * 3000)):
        began = time.monotonic()
        # Each from an address where it is the first.
        assert code(relay, token, f"127.0.0.{10 + number}") == 535
        assert time.monotonic() - began >= 0.5


def test_waiting_for_one_reply_holds_up_no_other_client(start: Start, api_key: NewApiKey) -> None:
    relay = start(SMTP_RELAY_AUTH_DELAY_SECONDS="30", SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS="100")
    with concurrent.futures.ThreadPoolExecutor(20) as guessers, contextlib.ExitStack() as stack:
        slow = [guessers.submit(code, relay, f"os_live_wrong_{number}", "127.0.0.20") for number in range(20)]
        stack.callback(relay.stop)
        time.sleep(1)
        began = time.monotonic()
        assert code(relay, api_key.token, "127.0.0.20") == 235
        assert time.monotonic() - began < 10  # six of them wait for thirty seconds
        assert sum(not future.done() for future in slow) >= 10


def test_our_own_trouble_is_not_the_clients_failure(start: Start, postgres_url: str, api_key: NewApiKey) -> None:
    relay = start(DATABASE_URL=f"postgresql://x@127.0.0.1:{free_port()}/x")
    # The log says it before any client has come, and not once for each of them.
    eventually(lambda: '"postgres_unavailable"' in relay.log)
    assert [code(relay, f"os_live_any_{number}") for number in range(6)] == [454] * 6
    (away,) = [line for line in map(json.loads, relay.log.splitlines()) if line["event"] == "postgres_unavailable"]
    assert away["cause"] == "the connection was refused"


def test_a_redis_that_hangs_delays_no_log_in_and_failures_still_count(
    start: Start, tmp_path: Path, api_key: NewApiKey
) -> None:
    with Valkey(tmp_path / "valkey") as own:
        relay = start(REDIS_URL=own.url)
        assert code(relay, api_key.token) == 235
        with frozen(own):
            began = time.monotonic()
            assert guess(relay) == [535] * 3
            assert guess(relay, 2) == [421] * 2
            assert time.monotonic() - began < 20
            assert code(relay, api_key.token) == 235
