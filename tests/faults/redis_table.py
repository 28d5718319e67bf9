"""Faults of Valkey: clients never hear of it."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Final

import redis

from tests.faults.by_proxy import (
    AUTH,
    GOOD,
    Run,
    by_proxy,
    deaf,
    dribbling,
    resetting,
    slow,
)
from tests.faults.outages import Fault
from tests.faults.stage import Stage, wait_until
from tests.support.proxy import Proxy


def _while_redis(begin: Callable[[redis.Redis], object], end: Callable[[redis.Redis], object]) -> Run:
    @contextlib.contextmanager
    def run(stage: Stage) -> Iterator[None]:
        with redis.Redis.from_url(stage.valkey.url) as client:
            begin(client)
            try:
                yield
            finally:
                end(client)

    return run


def _too_many_clients(client: redis.Redis) -> None:
    client.config_set("maxclients", 1)
    client.client_kill_filter(_type="normal", skipme=True)


@contextlib.contextmanager
def _cannot_save(stage: Stage) -> Iterator[None]:
    """A disk that takes nothing any more: a snapshot fails, and Valkey refuses to write (MISCONF)."""
    directory = stage.valkey.directory / "data"
    with redis.Redis.from_url(stage.valkey.url) as client:
        client.config_set("save", "3600 1")
        shutil.rmtree(directory)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot fails")
        try:
            yield
        finally:
            directory.mkdir(exist_ok=True)
            client.config_set("save", "")


@contextlib.contextmanager
def _valkey_stopped(stage: Stage) -> Iterator[None]:
    stage.valkey.stop()
    try:
        yield
    finally:
        stage.valkey.start()


@contextlib.contextmanager
def _valkey_killed(stage: Stage) -> Iterator[None]:
    """Everything in it is lost."""
    stage.valkey.kill()
    try:
        yield
    finally:
        stage.valkey.start()


@contextlib.contextmanager
def _valkey_failed_over(stage: Stage) -> Iterator[None]:
    def demote(client: redis.Redis) -> None:
        client.replicaof("127.0.0.1", "1")

    with _while_redis(demote, lambda client: client.replicaof("NO", "ONE"))(stage):
        later = threading.Timer(0.7, stage.valkey_proxy.refuse)
        later.start()
        yield
        later.join()
    stage.valkey_proxy.heal()


REDIS: Final = (
    Fault(
        "valkey",
        "refusing",
        by_proxy("valkey", Proxy.refuse),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "hanging",
        by_proxy("valkey", Proxy.stall),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "gone without a word",
        by_proxy("valkey", Proxy.vanish),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "half-open: answers are lost",
        by_proxy("valkey", deaf),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "slow: 0.05 s an answer",
        by_proxy("valkey", slow(0.05)),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "slow: 0.5 s an answer",
        by_proxy("valkey", slow(0.5)),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "dribbling: an octet every 0.05 s",
        by_proxy("valkey", dribbling(0.05)),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "resetting at each message",
        by_proxy("valkey", resetting(b"EVALSHA", deliver=False)),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "resetting after each message",
        by_proxy("valkey", resetting(b"EVALSHA", deliver=True)),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "read-only",
        _while_redis(lambda client: client.replicaof("127.0.0.1", "1"), lambda client: client.replicaof("NO", "ONE")),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "disk full",
        _cannot_save,
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "out of memory",
        _while_redis(
            lambda client: client.config_set("maxmemory", 1), lambda client: client.config_set("maxmemory", 0)
        ),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "too many connections",
        _while_redis(_too_many_clients, lambda client: client.config_set("maxclients", 1000)),
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "stopped and started",
        _valkey_stopped,
        GOOD,
        AUTH,
    ),
    Fault(
        "valkey",
        "killed and started",
        _valkey_killed,
        GOOD,
        AUTH,
    ),
    Fault("valkey", "failing over", _valkey_failed_over, GOOD, AUTH, lasts=1.5),
)
