"""How long a reply to AUTH takes, by what is wrong with the key: what a guesser could learn from it."""

from __future__ import annotations

import base64
import hashlib
import random
import secrets
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.database import apply_schema, create_api_key, create_database, execute
from scripts.services import Postgres, Relay, Valkey, start_together

#: The longest delay; the first failure from an address is answered after a 32nd of it.
LONGEST_SECONDS: Final = 1.6
DELAY_SECONDS: Final = LONGEST_SECONDS / 32


@dataclass(frozen=True, slots=True)
class Times:
    """The seconds from AUTH to its reply, over all tries with one kind of key."""

    kind: str
    reply: bytes
    seconds: list[float]

    @property
    def median(self) -> float:
        """Of all tries."""
        return statistics.median(self.seconds)

    @property
    def ninetieth(self) -> float:
        """What nine in ten tries are below."""
        return statistics.quantiles(self.seconds, n=10)[-1]


def measure(directory: Path, tries: int, *, seed: int) -> list[Times]:
    """Tries keys of every kind in random order, each from an address that has failed never before: those all wait the
    same time.

    Raises AssertionError where the replies to wrong keys differ.
    """
    postgres, valkey = Postgres(directory / "postgres", durable=False), Valkey(directory / "valkey")
    try:
        start_together(postgres, valkey)
        url = create_database(postgres.url(), "times")
        apply_schema(url)
        settings = {
            "DATABASE_URL": url,
            "REDIS_URL": valkey.url,
            "SMTP_RELAY_AUTH_DELAY_SECONDS": str(LONGEST_SECONDS),
        }
        relay = Relay(directory / "relay", settings)
        try:
            relay.start()
            return _measure(relay, _kinds(url, tries), tries, random.Random(seed))
        finally:
            relay.stop()
    finally:
        valkey.stop()
        postgres.stop()


def _kinds(url: str, tries: int) -> dict[str, Callable[[], bytes]]:
    """What is tried, by kind: the next initial response of AUTH PLAIN."""
    orphans, revoked = ([create_api_key(url).token for _ in range(tries)] for _ in range(2))
    execute(url, "UPDATE api_keys SET user_id = NULL WHERE token_hash = ANY (%s)", ([*map(_hash, orphans)],))
    execute(url, "DELETE FROM api_keys WHERE token_hash = ANY (%s)", ([*map(_hash, revoked)],))
    again = f"os_live_{secrets.token_urlsafe(24)}"
    stocks = {kind: iter(tokens) for kind, tokens in (("orphans", orphans), ("revoked", revoked))}
    return {
        "unknown": lambda: _plain(f"os_live_{secrets.token_urlsafe(24)}"),
        "unknown, the same again and again": lambda: _plain(again),
        "unknown, not in the form of a key": lambda: _plain(secrets.token_urlsafe(3)),
        "unknown, 4,000 characters": lambda: _plain(secrets.token_urlsafe(3000)),
        "without a user": lambda: _plain(next(stocks["orphans"])),
        "revoked": lambda: _plain(next(stocks["revoked"])),
        "empty": lambda: _plain(""),
        "Base64 that is none": lambda: b"AAA",
    }


def _measure(relay: Relay, kinds: dict[str, Callable[[], bytes]], tries: int, chance: random.Random) -> list[Times]:
    measured = {kind: Times(kind, b"", []) for kind in kinds}
    order = [kind for kind in kinds for _ in range(tries)]
    chance.shuffle(order)
    addresses = _addresses()
    for kind in order:
        reply, seconds = _try(relay, kinds[kind](), next(addresses))
        if not measured[kind].seconds:
            measured[kind] = Times(kind, reply, [])
        assert measured[kind].reply == reply
        measured[kind].seconds.append(seconds)
    wrong = {times.reply for times in measured.values() if times.kind != "Base64 that is none"}
    assert len(wrong) == 1, wrong
    return list(measured.values())


def _addresses() -> Iterator[str]:
    """One after the other, all of this machine."""
    return (f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(0x20000, 0xFFFFFF))


def _try(relay: Relay, response: bytes, address: str) -> tuple[bytes, float]:
    with socket.create_connection((relay.host, relay.port), timeout=30, source_address=(address, 0)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(4096)
        client.sendall(b"EHLO client.example\r\n")
        client.recv(4096)
        began = time.perf_counter()
        client.sendall(b"AUTH PLAIN " + response + b"\r\n")
        reply = client.recv(4096)
        return reply, time.perf_counter() - began


def _plain(token: str) -> bytes:
    return base64.b64encode(b"\0user\0" + token.encode())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
