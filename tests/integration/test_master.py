"""The life of the processes: real forks, real signals, one shared socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scripts.services import free_port, processes
from tests.support.certificates import write_pair
from tests.support.service_process import PATIENCE, Service, der, eventually, served_certificate

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(**variables: str) -> Service:
        started.append(Service(tmp_path / f"service-{len(started)}.log", **variables))
        return started[-1]

    yield start
    for service in started:
        service.end()


# Memory


def test_the_master_imports_next_to_nothing() -> None:
    code = "import sys; import relay.__main__, relay.process.children, relay.process.master; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"pydantic", "gevent", "psycopg2", "redis", "boto3", "flanker", "structlog", "orjson", "sentry_sdk"}
    avoidable = {"ssl", "json", "re", "typing", "dataclasses", "logging", "threading", "asyncio", "ctypes"}
    assert not (heavy | avoidable) & set(loaded.stdout.split())


def test_the_master_stays_small(start: Callable[..., Service]) -> None:
    service = start()
    (worker,) = service.ready()
    master = psutil.Process(service.process.pid).memory_info().rss
    # Measured with Python 3.14: 16.5 MB, whose interpreter alone has 1.8 MB more than that of 3.11.
    assert master < (18_000_000 if sys.version_info >= (3, 14) else 16_000_000)
    assert master < psutil.Process(worker).memory_info().rss / 2


# Workers


def test_a_dead_worker_is_replaced(start: Callable[..., Service]) -> None:
    service = start(SMALL_STARTED_AFTER="0")
    (first,) = service.ready()
    os.kill(first, signal.SIGKILL)
    second = service.ready(2)[1]
    client, pid = service.connect()
    client.close()
    assert pid == second != first
    (line,) = service.events("worker_died")
    assert (line["pid"], line["exit_code"], line["level"]) == (first, -9, "error")


def test_clients_who_wait_while_no_worker_lives_are_served_by_the_next(start: Callable[..., Service]) -> None:
    service = start(SMALL_STARTED_AFTER="0")
    (first,) = service.ready()
    client, _ = service.connect()
    client.sendall(b"die")
    assert client.recv(1) == b""
    eventually("the first worker is gone", lambda: processes.ended(first))
    waiting = [socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) for _ in range(20)]
    second = service.ready(2)[1]
    assert {int(client.recv(100)) for client in waiting} == {second}


def test_several_workers_share_one_socket(start: Callable[..., Service]) -> None:
    service = start(WEB_CONCURRENCY="3", SMALL_STARTED_AFTER="0")
    workers = set(service.ready(3))
    assert len(workers) == 3
    assert {line["index"] for line in service.events("ready")} == {0, 1, 2}
    alive = workers.pop()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        # The worker that is left takes all: there is one queue, not one for each.
        connections = [service.connect() for _ in range(10)]
        assert {pid for _, pid in connections} == {alive}
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    for client, _ in connections:
        client.close()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    service = start(SMALL_WORKER="crash-after-first", SMALL_MARKER=str(tmp_path / "marker"), SMALL_STARTED_AFTER="1")
    (first,) = service.ready()
    # A life that counts. The kernel tells when a process was born to a second only.
    time.sleep(1.1)
    os.kill(first, signal.SIGKILL)
    eventually("five deaths", lambda: len(service.events("worker_died")) >= 5)
    pauses = [line["pause_seconds"] for line in service.events("worker_died")]
    assert pauses[:5] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert service.process.poll() is None
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_workers_that_never_start_are_the_end(start: Callable[..., Service]) -> None:
    service = start(SMALL_WORKER="crash")
    assert service.wait() == 1
    assert len(service.events("worker_died")) == 3
    assert service.events("start_failed")[0]["exit_code"] == 1
    assert "ZeroDivisionError" in service.log_path.read_text()


def test_a_worker_that_refuses_its_settings_is_the_end_at_once(start: Callable[..., Service]) -> None:
    service = start(SMALL_WORKER="refuse")
    assert service.wait() == 2
    assert not service.events("worker_died")


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_busy_connection_is_finished(start: Callable[..., Service], number: int) -> None:
    service = start()
    service.ready()
    client, _ = service.connect()
    service.signal(number)
    eventually("draining", lambda: service.events("draining"))
    eventually("nobody listens", service.refuses)
    client.sendall(b"still here")
    assert client.recv(100) == b"still here"
    assert service.process.poll() is None
    client.close()
    assert service.wait() == 0
    assert service.events("worker_drained")
    assert service.log[-1]["event"] == "drained"


def test_ctrl_c_counts_as_one_signal_for_the_whole_process_group(start: Callable[..., Service]) -> None:
    """A terminal signals every process of the group, and the program that started the service may pass on a SIGTERM."""
    service = start(WEB_CONCURRENCY="2")
    service.ready(2)
    client, _ = service.connect()
    os.killpg(service.process.pid, signal.SIGINT)
    os.killpg(service.process.pid, signal.SIGTERM)
    eventually("draining", lambda: service.events("draining"))
    client.sendall(b"still here")
    assert client.recv(100) == b"still here"
    client.close()
    assert service.wait() == 0
    assert len(service.events("worker_drained")) == 2
    assert "Traceback" not in service.log_path.read_text()


def test_a_second_signal_ends_it_at_once(start: Callable[..., Service]) -> None:
    service = start()
    (worker,) = service.ready()
    client, _ = service.connect()
    service.signal(signal.SIGTERM)
    eventually("draining", lambda: service.events("draining"))
    service.signal(signal.SIGTERM)
    assert service.wait() == 1
    assert processes.ended(worker)
    assert client.recv(1) == b""


def test_who_does_not_drain_is_killed(start: Callable[..., Service]) -> None:
    service = start(SMALL_WORKER="stubborn", SMTP_RELAY_DRAIN_SECONDS="0.3")
    (worker,) = service.ready()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert processes.ended(worker)
    assert service.events("drain_timed_out")[0]["workers"] == 1


def test_workers_do_not_outlive_their_master(start: Callable[..., Service]) -> None:
    service = start(WEB_CONCURRENCY="2")
    workers = service.ready(2)
    client, _ = service.connect()
    service.signal(signal.SIGKILL)
    service.wait()
    eventually("both noticed", lambda: len(service.events("master_gone")) == 2)
    client.sendall(b"still here")
    assert client.recv(100) == b"still here"
    client.close()
    eventually("both ended", lambda: all(processes.ended(pid) for pid in workers))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_anything_listens(start: Callable[..., Service], number: int) -> None:
    service = start(SMALL_PREPARE_SECONDS="60")
    # The child is there once the master waits for it.
    (child,) = eventually("a child", lambda: processes.children(service.process.pid))
    service.signal(number)
    assert service.wait() == 0
    assert processes.ended(child.pid)
    assert service.log_path.read_text() == ""


# The certificate


@pytest.fixture
def tls_service(start: Callable[..., Service], tmp_path: Path) -> tuple[Service, str, str]:
    cert_path, key_path = write_pair(tmp_path / "pair")
    service = start(WEB_CONCURRENCY="2", SMTP_RELAY_TLS_CERT_PATH=cert_path, SMTP_RELAY_TLS_KEY_PATH=key_path)
    service.ready(2)
    return service, cert_path, key_path


def test_a_renewed_certificate_is_served_by_all(tls_service: tuple[Service, str, str], tmp_path: Path) -> None:
    service, cert_path, _ = tls_service
    old = der(cert_path)
    assert served_certificate(service) == old
    write_pair(tmp_path / "pair")
    eventually("both reloaded", lambda: len(service.events("certificate_reloaded")) >= 2)
    assert {served_certificate(service) for _ in range(10)} == {der(cert_path)} != {old}


def test_sighup_reloads(tls_service: tuple[Service, str, str]) -> None:
    service, _, _ = tls_service
    service.signal(signal.SIGHUP)
    eventually("both reloaded", lambda: len(service.events("certificate_reloaded")) == 2)
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_a_bad_certificate_is_not_taken(tls_service: tuple[Service, str, str], tmp_path: Path) -> None:
    service, cert_path, key_path = tls_service
    old = der(cert_path)
    Path(key_path).write_text("rubbish")
    refused = "certificate_not_reloaded"
    eventually("both refused", lambda: len(service.events(refused)) >= 2)
    assert {served_certificate(service) for _ in range(6)} == {old}
    assert all(line["reason"].startswith("SMTP_RELAY_TLS_KEY_PATH is ") for line in service.events(refused))
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


# The start


def run_relay(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "relay"],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_wrong_settings_are_a_line_each_and_exit_2() -> None:
    ended = run_relay(DATABASE_URL="postgres://u:hunter2@db/x", WEB_CONCURRENCY="many", SMTP_RELAY_DRAIN_SECONDS="-1")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.splitlines() == [
        "SMTP_RELAY_DRAIN_SECONDS is '-1': should be seconds, from 0 to 3600",
        "WEB_CONCURRENCY is 'many': should be a whole number from 1 to 256",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_taken_port_is_a_line_and_exit_2(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_relay(DATABASE_URL="postgres://u:hunter2@db/x", SMTP_RELAY_PORT=str(port), SMTP_RELAY_HOST=host)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"SMTP_RELAY_PORT is {port}: should be a free port, another process listens")


def test_a_host_of_another_machine() -> None:
    ended = run_relay(DATABASE_URL="postgres://u@db/x", SMTP_RELAY_PORT=str(free_port()), SMTP_RELAY_HOST="192.0.2.1")
    assert ended.returncode == 2
    assert ended.stderr == "SMTP_RELAY_HOST is '192.0.2.1': should be an address of this machine\n"


def test_the_real_service_starts_without_a_warning_and_stays_small(tmp_path: Path) -> None:
    """gevent warns (RuntimeWarning) when a module was imported before it could patch it."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    variables |= {
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "SMTP_RELAY_HOST": "127.0.0.1",
        "SMTP_RELAY_PORT": str(free_port()),
        "SMTP_RELAY_LOG_FORMAT": "json",
    }
    log_path = tmp_path / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "error::RuntimeWarning", "-m", "relay"],
            cwd=ROOT,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually("ready", lambda: '"event":"ready"' in log_path.read_text() or process.poll() is not None)
        assert process.poll() is None, log_path.read_text()
        assert len(processes.children(process.pid)) == 2  # the template and the worker
        family = processes.family(process.pid)
        if sys.platform == "linux":
            # Of what several processes share, each counts its part. Measured with Python 3.14: 76.5 MB, since the
            # code of the interpreter and of the libraries takes a tenth more.
            most = 82 if sys.version_info >= (3, 14) else 70
            assert sum(member.memory_full_info().pss for member in family) < most * 2**20
    finally:
        process.terminate()
        status = process.wait(PATIENCE)
    assert status == 0
    lines = [json.loads(line) for line in log_path.read_text().splitlines()]
    # That there is no Postgres may be said by then.
    assert {line["event"] for line in lines if line["level"] != "info"} <= {"postgres_unavailable"}
