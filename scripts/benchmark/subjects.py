"""What is measured, and where it runs: the servers behind it, and what the kernel says of its processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil
import redis

from scripts.benchmark.load import Load, Outcome
from scripts.database import NewApiKey, apply_schema, create_api_key, create_database, drop_database, execute
from scripts.services import Postgres, Relay, Server, ServiceFailed, Sqs, Valkey, start_together
from scripts.services.processes import family

ROOT = Path(__file__).resolve().parent.parent.parent
_DATABASE = "bench"
#: A process that used no more than this in a while is at rest: the kernel counts in hundredths of a second.
_AT_REST_SECONDS = 0.01
#: How long what a load leads to may take, after its end.
_PATIENCE_SECONDS = 180.0


class Yardstick(Server):
    """`scripts/yardstick`, installed by npm in the state directory, on Node."""

    name = "The yardstick"
    source = ROOT / "scripts" / "yardstick"

    def __init__(self, directory: Path, database_url: str) -> None:
        super().__init__(directory)
        self._database_url = database_url

    @staticmethod
    def available() -> bool:
        """Whether this machine has what it needs."""
        return shutil.which("node") is not None and shutil.which("npm") is not None

    def prepare(self) -> None:
        """Installs it, unless that has been done. Raises ServiceFailed."""
        for name in ("server.mjs", "package.json", "package-lock.json"):
            shutil.copyfile(self.source / name, self.directory / name)
        lock, installed = self.directory / "package-lock.json", self.directory / "installed.json"
        if installed.exists() and installed.read_bytes() == lock.read_bytes():
            return
        npm = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], check=False, cwd=self.directory, capture_output=True, text=True
        )
        if npm.returncode != 0:
            raise ServiceFailed(f"npm could not install the yardstick: {(npm.stderr.splitlines() or ['?'])[-1]}")
        shutil.copyfile(lock, installed)

    def command(self) -> list[str]:
        """See Server."""
        node = shutil.which("node")
        assert node is not None
        return [node, str(self.directory / "server.mjs")]

    def environment(self) -> dict[str, str]:
        """See Server."""
        wanted = {"DATABASE_URL": self._database_url, "YARDSTICK_PORT": str(self.port), "NODE_ENV": "production"}
        return {**super().environment(), **wanted}

    def answers(self) -> bool:
        """Whether it greets."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.host, self.port), timeout=2) as connection,
        ):
            return connection.recv(4) == b"220 "
        return False


@dataclass(frozen=True, slots=True)
class Sample:
    """One load on one subject."""

    outcome: Outcome
    #: Of the subject's processes together, user and system, in seconds.
    cpu: float

    @property
    def cpu_ms(self) -> float:
        """Milliseconds a message."""
        return self.cpu / self.outcome.accepted * 1000


def together(samples: Sequence[Sample]) -> Sample:
    """Several loads on one subject as one, so that each counts by its messages."""
    outcomes = [sample.outcome for sample in samples]
    whole = replace(outcomes[0], accepted=sum(outcome.accepted for outcome in outcomes))
    return Sample(whole, sum(sample.cpu for sample in samples))


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, of a process and its descendants; the dead ones are in their parents' account."""
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def rss(pid: int) -> int:
    """Resident octets of a process and its descendants. Of a page that several share, each has its part (Linux)."""
    total = 0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss if sys.platform == "linux" else process.memory_info().rss
    return total


class PeakRss:
    """The most that a process and its descendants had at one time, while the context lasts."""

    interval = 0.02

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.octets = 0

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            self.octets = max(self.octets, rss(self._pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def wait_until_at_rest(pid: int, *, seconds: float = 60.0) -> None:
    """Until the processes have done what they still had to do."""
    deadline = time.monotonic() + seconds
    before = cpu_seconds(pid)
    while time.monotonic() < deadline:
        time.sleep(0.25)
        now = cpu_seconds(pid)
        if now - before <= _AT_REST_SECONDS:
            return
        before = now


class Stage:
    """Postgres, Valkey and, where asked for, SQS; an empty database with one API key; the subjects on top."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = Postgres(
            directory / "postgres",
            settings={
                "shared_preload_libraries": "pg_stat_statements",
                "max_wal_size": "4GB",  # no checkpoint in the midst of a round
                "autovacuum": "off",
            },
        )
        self.valkey = Valkey(directory / "valkey")
        self._sqs: Sqs | None = None
        self.database_url = ""
        self.key = NewApiKey("", "", "")

    def __enter__(self) -> Self:
        start_together(self.postgres, self.valkey)
        drop_database(self.postgres.url(), _DATABASE)
        self.database_url = create_database(self.postgres.url(), _DATABASE)
        apply_schema(self.database_url)
        execute(self.database_url, "CREATE EXTENSION pg_stat_statements")
        self.key = create_api_key(self.database_url)
        # One address is suppressed, so that no subject can do without a look-up.
        execute(
            self.database_url,
            "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
            " SELECT gen_random_uuid(), %s, 'gone-' || n || '@example.net', 'bounced', now(), now()"
            " FROM generate_series(1, 1000) n",
            (self.key.user_id,),
        )
        execute(self.database_url, "ANALYZE")
        return self

    def __exit__(self, *_: object) -> None:
        if self._sqs is not None:
            self._sqs.stop()
        self.valkey.stop()
        self.postgres.stop()

    @property
    def sqs(self) -> Sqs:
        """The queue service, started when it is first needed."""
        if self._sqs is None:
            self._sqs = Sqs(self.directory / "sqs")
            self._sqs.start()
        return self._sqs

    @contextlib.contextmanager
    def relay(self, name: str = "relay", checkout: Path = ROOT, /, **settings: str) -> Iterator[Relay]:
        """A relay as it is by default, in polling mode, but for the settings given; `checkout` holds its code."""
        ours = ("SMTP_RELAY_", "BACKGROUND_JOBS_", "AWS_")
        inherited = [variable for variable in os.environ if variable.startswith(ours)]
        environment: Mapping[str, str | None] = {
            **dict.fromkeys([*inherited, "PORT", "SENTRY_DSN", "WEB_CONCURRENCY"]),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.valkey.url,
            # A few clients do the work of many here.
            "SMTP_RELAY_MAX_MESSAGES_PER_CONNECTION": "0",
            **settings,
        }
        with Relay(self.directory / name, environment, checkout=checkout) as relay:
            yield relay

    @contextlib.contextmanager
    def yardstick(self) -> Iterator[Yardstick | None]:
        """The yardstick; None on a machine without Node."""
        if not Yardstick.available():
            yield None
            return
        with Yardstick(self.directory / "yardstick", self.database_url) as yardstick:
            yield yardstick

    def load(self, server: Server, size: str, **options: int | float) -> Load:
        """A load for one of the subjects; see `Load`."""
        return Load(port=server.port, token=self.key.token, size=size, **options)  # type: ignore[arg-type]

    def measure(
        self, server: Server, load: Load, *, finished: Callable[[Outcome], bool] = lambda outcome: True
    ) -> Sample:
        """Runs a load on an empty table, and says what it cost the server until it was at rest and all is `finished`.

        Raises RuntimeError if a message failed, and where that does not come about.
        """
        self.clean()
        return self._measure(server, load, finished)

    def measure_together(self, loads: Sequence[tuple[Server, Load]]) -> list[Sample]:
        """As `measure`, of several servers, each with its load, all at the same time."""
        self.clean()
        with ThreadPoolExecutor(len(loads)) as pool:
            return list(pool.map(lambda each: self._measure(each[0], each[1], lambda outcome: True), loads))

    def _measure(self, server: Server, load: Load, finished: Callable[[Outcome], bool]) -> Sample:
        wait_until_at_rest(server.pid)
        before = cpu_seconds(server.pid)
        outcome = load.run()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not finished(outcome):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{server.name}, {load.size}: not finished in time")
            time.sleep(0.1)
        wait_until_at_rest(server.pid)
        cpu = cpu_seconds(server.pid) - before
        if outcome.refused or outcome.failed or not outcome.accepted:
            raise RuntimeError(f"{server.name}, {load.size}: {outcome}, see {server.log_path}")
        return Sample(outcome, cpu)

    def clean(self) -> None:
        """Removes all mails, from memory and disk; the caches stay warm."""
        execute(self.database_url, "TRUNCATE emails CASCADE")
        execute(self.database_url, "CHECKPOINT")

    def redis(self) -> redis.Redis:
        """A client for what the caches hold."""
        return redis.Redis.from_url(self.valkey.url, decode_responses=True)
