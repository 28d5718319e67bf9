"""Faults of Postgres, and what clients may hear then.

The faults are real where a process without privileges can bring them about on a real server; the rest is done by the
proxy. A full disk is an error that the real server raises with its real SQLSTATE, from a trigger.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from scripts.database import execute
from tests.faults.by_proxy import (
    ANY_AUTH,
    AUTH,
    BAD,
    EITHER,
    GOOD,
    NO_AUTH,
    Run,
    by_proxy,
    deaf,
    dribbling,
    resetting,
    slow,
)
from tests.faults.outages import Fault
from tests.faults.stage import Stage
from tests.support.proxy import Proxy


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


#: Sessions hear of it by a signal, a moment after pg_reload_conf() has returned.
_READ_ONLY: Final = (
    "ALTER SYSTEM SET default_transaction_read_only = on;;SELECT pg_reload_conf();;SELECT pg_sleep(0.5)",
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
    """What a client sees: the old server becomes read-only, cuts all connections, and then the new one is there."""
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

#: The statement that stores messages has this name.
_INSERT: Final = b"opensend_relay_insert"

POSTGRES: Final = (
    Fault(
        "postgres",
        "refusing",
        by_proxy("postgres", Proxy.refuse),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "hanging",
        by_proxy("postgres", Proxy.stall),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "gone without a word",
        by_proxy("postgres", Proxy.vanish),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "half-open: answers are lost",
        by_proxy("postgres", deaf),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "slow: 0.3 s an answer",
        by_proxy("postgres", slow(0.3)),
        GOOD,
        AUTH,
    ),
    Fault(
        "postgres",
        "slow: 2 s an answer",
        by_proxy("postgres", slow(2.0)),
        EITHER,
        ANY_AUTH,
    ),
    Fault(
        "postgres",
        "slow: 6 s an answer",
        by_proxy("postgres", slow(6.0)),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "dribbling: an octet every 0.2 s",
        by_proxy("postgres", dribbling(0.2)),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "resetting once, before the INSERT",
        by_proxy("postgres", resetting(_INSERT, deliver=False, times=1)),
        GOOD,
        AUTH,
    ),
    Fault(
        "postgres",
        "resetting once, after the INSERT",
        by_proxy("postgres", resetting(_INSERT, deliver=True, times=1)),
        GOOD,
        AUTH,
    ),
    Fault(
        "postgres",
        "resetting at each INSERT",
        by_proxy("postgres", resetting(_INSERT, deliver=False)),
        BAD,
        AUTH,
    ),
    Fault(
        "postgres",
        "read-only",
        _while_sql(*_READ_ONLY),
        BAD,
        AUTH,
    ),
    Fault(
        "postgres",
        "disk full",
        _while_sql(_DISK_FULL, "DROP FUNCTION disk_full() CASCADE"),
        BAD,
        AUTH,
    ),
    Fault(
        "postgres",
        "too many connections",
        _while_sql("ALTER ROLE relay CONNECTION LIMIT 0", "ALTER ROLE relay CONNECTION LIMIT -1", disconnect=True),
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "stopped and started",
        _stopped,
        BAD,
        NO_AUTH,
    ),
    Fault(
        "postgres",
        "killed and started",
        _killed,
        BAD,
        NO_AUTH,
    ),
    Fault("postgres", "failing over", _failed_over, BAD, ANY_AUTH, lasts=1.5),
)
