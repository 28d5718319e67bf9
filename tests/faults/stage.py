"""A relay on separate servers, with a proxy before each of them: everything on it may be broken."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit, urlunsplit

import psutil
import redis

from scripts.database import NewApiKey, apply_schema, create_api_key, create_database, execute
from scripts.services import Postgres, Relay, Sqs, Valkey, processes, start_together
from tests.faults.ledger import Books, audit, published
from tests.faults.load import Conversation, Lost, Mail
from tests.support.proxy import Proxy

ROOT: Final = Path(__file__).resolve().parent.parent.parent

#: The account that the relay uses: unlike a superuser it can be told that there are too many connections.
ACCOUNT: Final = "relay"


class Servers:
    """Postgres, Valkey and SQS, as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.postgres = Postgres(directory / "postgres", durable=False)
        self.valkey = Valkey(directory / "valkey", settings=("--dir", str(directory / "valkey" / "data")))
        self.sqs = Sqs(directory / "sqs")

    def __enter__(self) -> Self:
        (self.valkey.directory / "data").mkdir(parents=True)
        start_together(self.postgres, self.valkey, self.sqs)
        execute(self.postgres.url(), f"CREATE ROLE {ACCOUNT} LOGIN PASSWORD 'relay'")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self.postgres, self.valkey, self.sqs):
            server.stop()


class Stage:
    """A relay, and a proxy before each server: it knows the proxies alone."""

    def __init__(self, directory: Path, servers: Servers | None = None, **settings: str) -> None:
        """`servers`: those of others, which must be left whole; else the stage has its own. `settings`: the relay's,
        beside those that name the servers."""
        self.directory = directory
        self._settings = settings
        self._own = Servers(directory) if servers is None else None
        made = servers or self._own
        assert made is not None
        self.postgres, self.valkey, self.sqs = made.postgres, made.valkey, made.sqs
        self._queue_name = f"jobs-{uuid.uuid4().hex[:8]}"
        #: Jobs of others, in a queue of others.
        self._foreign_jobs: Counter[str] = Counter()
        self._jobs_before_restart: list[str] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closing:
            if self._own is not None:
                closing.enter_context(self._own)
            with redis.Redis.from_url(self.valkey.url) as client:
                client.flushall()
            self._foreign_jobs = Counter(published(self.sqs.endpoint))
            self.database_url = create_database(self.postgres.url(), f"faults_{uuid.uuid4().hex[:8]}")
            apply_schema(self.database_url)
            self.key: NewApiKey = create_api_key(self.database_url)
            self.queue_url = self.sqs.create_queue(self._queue_name)
            self.postgres_proxy = closing.enter_context(Proxy(self.postgres.port))
            self.valkey_proxy = closing.enter_context(Proxy(self.valkey.port))
            self.sqs_proxy = closing.enter_context(Proxy(self.sqs.port))
            self.relay = Relay(self.directory / "relay", self._environment())
            closing.callback(self.relay.stop)
            self.relay.start()
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def _environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self._account_url(),
            "REDIS_URL": _through(self.valkey.url, self.valkey_proxy),
            "BACKGROUND_JOBS_QUEUE_URL": self.queue_url,
            **self.sqs.client_environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.sqs_proxy.port}",
            "SMTP_RELAY_DRAIN_SECONDS": "8",
            "SMTP_RELAY_SPOOL_THRESHOLD_BYTES": "20000",
            "SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS": "1000",
            "SMTP_RELAY_MAX_AUTH_FAILURES_PER_ADDRESS": "0",
            **self._settings,
        }

    def _account_url(self) -> str:
        execute(self.database_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ACCOUNT}")
        parts = urlsplit(_through(self.database_url, self.postgres_proxy))
        return urlunsplit(parts._replace(netloc=f"{ACCOUNT}:relay@{parts.netloc.rpartition('@')[2]}"))

    # What clients do

    def talk(self, *, token: str | None = None, timeout: float = 30.0) -> Conversation:
        """A connection that has authenticated. Raises Lost."""
        return Conversation(self.relay.port, token or self.key.token, timeout=timeout)

    # What is broken

    def workers(self) -> list[psutil.Process]:
        """The relay's workers, without their processes for large messages."""
        return self.relay.workers() if self.relay.running else []

    def kill_family(self) -> None:
        """SIGKILL for the master and everything below it, as the end of a container does, and a new start."""
        self.relay.kill()
        self.relay.start()

    def kill_master(self) -> None:
        """SIGKILL for the master alone; its workers drain by themselves. And a new start."""
        family = processes.children(self.relay.pid, recursive=True)
        os.kill(self.relay.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(self.relay.pid).wait(10)
        self.relay.stop()
        # Orphans would greet for the new one, and keep it from listening.
        wait_until(lambda: _is_free(self.relay.port), "the orphans give the port back")
        self.relay.start()
        psutil.wait_procs(family, timeout=20)

    # What came of it

    def audit(self, mails: Sequence[Mail], *, remind: bool = False) -> Books:
        """Sweeps, and compares. The relay may run on. `remind`: see `sweep`."""
        self.sweep(remind=remind)
        return audit(mails, self.database_url, self.jobs())

    def jobs(self) -> list[str]:
        """Email ids of all jobs that the queue ever took. Raises OSError while it is away."""
        ours = Counter(published(self.sqs.endpoint)) - self._foreign_jobs
        return [*self._jobs_before_restart, *ours.elements()]

    def kill_queue(self) -> None:
        """SIGKILL. moto keeps nothing, so what it had is noted; its queue is gone too until `start_queue`."""
        # Between the look and the kill it takes nothing more that it could answer.
        self.sqs_proxy.stall()
        self._jobs_before_restart = self.jobs()
        self.sqs.kill()
        self.sqs_proxy.reset_all()
        self.sqs_proxy.heal()

    def start_queue(self) -> None:
        """Brings the queue back, under the same URL."""
        self.sqs.start()
        self.sqs.create_queue(self._queue_name)

    def sweep(self, *, remind: bool = False) -> None:
        """One round of the relay's sweep that does not wait for intents to be half a minute old.

        A little later than the last reply: what a publisher has in hand is not forgotten. `remind`: with the second
        net, too, which asks Postgres alone; it does not wait for rows to be a quarter of an hour old.
        """
        time.sleep(2.0)
        environment = {
            **os.environ,
            **self._environment_of_sweep(),
            "SWEEP_REMIND": "yes" if remind else "",
            "PYTHONPATH": str(ROOT),
        }
        subprocess.run([sys.executable, "-m", "tests.faults.sweep_once"], check=True, env=environment, cwd=ROOT)

    def _environment_of_sweep(self) -> dict[str, str]:
        return {
            "SWEEP_DATABASE": self.database_url,
            "SWEEP_REDIS": self.valkey.url,
            "SWEEP_QUEUE": self.queue_url,
            **self.sqs.client_environment,
        }

    def log_lines(self) -> list[str]:
        """Everything that the relay wrote."""
        return self.relay.log_path.read_text(errors="replace").splitlines()

    def check_log(self, *, allowed: Sequence[str] = ()) -> None:
        """Raises AssertionError where the log holds a traceback, or a line that is not one of the log's own."""
        strange = [
            line
            for line in self.log_lines()
            if (not line.startswith("{") or '"traceback"' in line) and not any(text in line for text in allowed)
        ]
        assert not strange, "\n".join(strange[:40])


def _through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    account, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account}{at}{proxy.host}:{proxy.port}"))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = 30.0, every: float = 0.02) -> float:
    """Waits for something to be so; how many seconds it took. Looks `every` so many. Raises AssertionError."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)
    return time.monotonic() - began


def greets(port: int) -> bool:
    """Whether a client is greeted."""
    try:
        with contextlib.closing(Conversation(port, None, timeout=5)):
            return True
    except Lost:
        return False
