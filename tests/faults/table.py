"""What can befall the servers behind the relay, and what clients may hear then: the table of faults.

The faults are real where a process without privileges can bring them about on a real server; the rest is done by the
proxy. A full disk is an error that the real server raises with its real SQLSTATE, from a trigger.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Final

import redis

from scripts.database import execute
from tests.faults.outages import Fault
from tests.faults.proxy import Proxy, Trip
from tests.faults.stage import Stage, wait_until

Run = Callable[[Stage], contextlib.AbstractContextManager[None]]

#: What clients may hear, but for 250.
LATER: Final = b"451 4.3.0"
AUTH_LATER: Final = b"454 4.7.0"
AUTH_BAD: Final = b"535 5.7.8"


# By the proxy


def _by_proxy(service: str, begin: Callable[[Proxy], None]) -> Run:
    @contextlib.contextmanager
    def run(stage: Stage) -> Iterator[None]:
        proxy: Proxy = getattr(stage, f"{service}_proxy")
        begin(proxy)
        try:
            yield
        finally:
            proxy.heal()

    return run


def _slow(seconds: float) -> Callable[[Proxy], None]:
    def begin(proxy: Proxy) -> None:
        proxy.delay_to_client = seconds

    return begin


def _deaf(proxy: Proxy) -> None:
    proxy.drop_to_client = True


def _resetting(pattern: bytes, *, deliver: bool, times: int = 10**6) -> Callable[[Proxy], None]:
    def begin(proxy: Proxy) -> None:
        proxy.trip = Trip(pattern, deliver, times)

    return begin


def _answering(octets: bytes) -> Callable[[Proxy], None]:
    def begin(proxy: Proxy) -> None:
        proxy.canned = octets

    return begin


# By Postgres


def _while_sql(begin: str, end: str, *, disconnect: bool = False) -> Run:
    @contextlib.contextmanager
    def run(stage: Stage) -> Iterator[None]:
        for statement in begin.split(";;"):
            execute(stage.database_url, statement)
        if disconnect:
            execute(
                stage.postgres.url(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'"
            )
        try:
            yield
        finally:
            for statement in end.split(";;"):
                execute(stage.database_url, statement)

    return run


_READ_ONLY: Final = (
    "ALTER SYSTEM SET default_transaction_read_only = on;;SELECT pg_reload_conf()",
    "ALTER SYSTEM RESET default_transaction_read_only;;SELECT pg_reload_conf()",
)


@contextlib.contextmanager
def _stopped(stage: Stage) -> Iterator[None]:
    stage.postgres.stop()
    try:
        yield
    finally:
        stage.postgres.start()


@contextlib.contextmanager
def _killed(stage: Stage) -> Iterator[None]:
    stage.postgres.kill()
    try:
        yield
    finally:
        stage.postgres.start()


@contextlib.contextmanager
def _failed_over(stage: Stage) -> Iterator[None]:
    """What a client sees: the old server becomes read-only, cuts everybody off, and then the new one is there."""
    with _while_sql(*_READ_ONLY)(stage):
        later = threading.Timer(0.7, stage.postgres_proxy.refuse)
        later.start()
        yield
        later.join()
    stage.postgres_proxy.heal()


_DISK_FULL: Final = """
CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER disk_full BEFORE INSERT ON emails FOR EACH STATEMENT EXECUTE FUNCTION disk_full()"""

_BAD: Final = frozenset((LATER,))
_EITHER: Final = frozenset((LATER, b"250"))
_GOOD: Final = frozenset((b"250",))
_NO_AUTH: Final = frozenset((AUTH_LATER,))
_ANY_AUTH: Final = frozenset((AUTH_LATER, AUTH_BAD))
_AUTH: Final = frozenset((AUTH_BAD,))
#: The statement that stores messages has this name.
_INSERT: Final = b"opensend_relay_insert"

POSTGRES: Final = (
    Fault(
        "postgres",
        "refusing",
        _by_proxy("postgres", Proxy.refuse),
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "hanging",
        _by_proxy("postgres", Proxy.stall),
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "gone without a word",
        _by_proxy("postgres", Proxy.vanish),
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "half-open: answers are lost",
        _by_proxy("postgres", _deaf),
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "slow: 0.3 s an answer",
        _by_proxy("postgres", _slow(0.3)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "postgres",
        "slow: 2 s an answer",
        _by_proxy("postgres", _slow(2.0)),
        _EITHER,
        _ANY_AUTH,
    ),
    Fault(
        "postgres",
        "slow: 6 s an answer",
        _by_proxy("postgres", _slow(6.0)),
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "resetting once, before the INSERT",
        _by_proxy("postgres", _resetting(_INSERT, deliver=False, times=1)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "postgres",
        "resetting once, after the INSERT",
        _by_proxy("postgres", _resetting(_INSERT, deliver=True, times=1)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "postgres",
        "resetting at each INSERT",
        _by_proxy("postgres", _resetting(_INSERT, deliver=False)),
        _BAD,
        _AUTH,
    ),
    Fault(
        "postgres",
        "read-only",
        _while_sql(*_READ_ONLY),
        _BAD,
        _AUTH,
    ),
    Fault(
        "postgres",
        "disk full",
        _while_sql(_DISK_FULL, "DROP FUNCTION disk_full() CASCADE"),
        _BAD,
        _AUTH,
    ),
    Fault(
        "postgres",
        "too many connections",
        _while_sql("ALTER ROLE relay CONNECTION LIMIT 0", "ALTER ROLE relay CONNECTION LIMIT -1", disconnect=True),
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "stopped and started",
        _stopped,
        _BAD,
        _NO_AUTH,
    ),
    Fault(
        "postgres",
        "killed and started",
        _killed,
        _BAD,
        _NO_AUTH,
    ),
    Fault("postgres", "failing over", _failed_over, _BAD, _ANY_AUTH, lasts=1.5),
)

# By Valkey


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
        _by_proxy("valkey", Proxy.refuse),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "hanging",
        _by_proxy("valkey", Proxy.stall),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "gone without a word",
        _by_proxy("valkey", Proxy.vanish),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "half-open: answers are lost",
        _by_proxy("valkey", _deaf),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "slow: 0.05 s an answer",
        _by_proxy("valkey", _slow(0.05)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "slow: 0.5 s an answer",
        _by_proxy("valkey", _slow(0.5)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "resetting at each message",
        _by_proxy("valkey", _resetting(b"EVALSHA", deliver=False)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "resetting after each message",
        _by_proxy("valkey", _resetting(b"EVALSHA", deliver=True)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "read-only",
        _while_redis(lambda client: client.replicaof("127.0.0.1", "1"), lambda client: client.replicaof("NO", "ONE")),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "disk full",
        _cannot_save,
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "out of memory",
        _while_redis(
            lambda client: client.config_set("maxmemory", 1), lambda client: client.config_set("maxmemory", 0)
        ),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "too many connections",
        _while_redis(_too_many_clients, lambda client: client.config_set("maxclients", 1000)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "stopped and started",
        _valkey_stopped,
        _GOOD,
        _AUTH,
    ),
    Fault(
        "valkey",
        "killed and started",
        _valkey_killed,
        _GOOD,
        _AUTH,
    ),
    Fault("valkey", "failing over", _valkey_failed_over, _GOOD, _AUTH, lasts=1.5),
)

# By the queue


def _error(status: str, code: str) -> bytes:
    body = b'{"__type":"com.amazonaws.sqs#%b","message":"no"}' % code.encode()
    return b"HTTP/1.1 %b\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


@contextlib.contextmanager
def _sqs_restarted(stage: Stage) -> Iterator[None]:
    stage.kill_queue()
    try:
        yield
    finally:
        stage.start_queue()


QUEUE: Final = (
    Fault(
        "sqs",
        "refusing",
        _by_proxy("sqs", Proxy.refuse),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "hanging",
        _by_proxy("sqs", Proxy.stall),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "gone without a word",
        _by_proxy("sqs", Proxy.vanish),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "half-open: answers are lost",
        _by_proxy("sqs", _deaf),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "slow: 1 s an answer",
        _by_proxy("sqs", _slow(1.0)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "resetting in mid-request",
        _by_proxy("sqs", _resetting(b"SendMessageBatch", deliver=False)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "resetting after each request",
        _by_proxy("sqs", _resetting(b"SendMessageBatch", deliver=True)),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "read-only: access denied",
        _by_proxy("sqs", _answering(_error("403 Forbidden", "AccessDeniedException"))),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "full: 500",
        _by_proxy("sqs", _answering(_error("500 Internal Server Error", "InternalFailure"))),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "too many requests: 503",
        _by_proxy("sqs", _answering(_error("503 Service Unavailable", "ThrottlingException"))),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "speaking rubbish",
        _by_proxy("sqs", _answering(b"220 mail.example ESMTP\r\n")),
        _GOOD,
        _AUTH,
    ),
    Fault(
        "sqs",
        "killed and started",
        _sqs_restarted,
        _GOOD,
        _AUTH,
    ),
)
