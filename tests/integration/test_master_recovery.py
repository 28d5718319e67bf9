"""What becomes of a service whose workers hang, whose files change, or whose processes are killed in any order."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from relay.process.absence import REPLY
from relay.process.template import NAME
from scripts.services import free_port, processes
from tests.support.certificates import write_pair
from tests.support.service_process import PATIENCE, Service, der, eventually, served_certificate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are the master's own children")

#: The master looks ten times a second and waits for so many looks: long enough for a busy machine.
LOOKS = "40"
HUNG = "worker_hung"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(**variables: str) -> Service:
        started.append(Service(tmp_path / f"service-{len(started)}.log", **variables))
        return started[-1]

    yield start
    for service in started:
        service.end()


def children(service: Service) -> dict[int, psutil.Process]:
    return {child.pid: child for child in processes.children(service.process.pid)}


def templates(service: Service) -> list[int]:
    return [child.pid for child in processes.named(NAME, processes.children(service.process.pid))]


def template_of(service: Service) -> int:
    (template,) = templates(service)
    return template


def served_by(service: Service) -> int:
    """The pid of the worker that serves a client. On a busy machine it may take so long to be there that the master
    sends the client away first, and the client comes again.
    """
    for _ in range(60):
        try:
            client, pid = service.connect()
        except ValueError as said:
            if "421 4.3.2" not in str(said):
                raise
            time.sleep(0.5)
            continue
        client.close()
        return pid
    raise AssertionError("no worker serves")


# Workers that hang


@pytest.mark.parametrize(("command", "place"), [(b"hang", "in_one_call"), (b"spin", "handle")])
def test_a_worker_that_computes_without_end_is_shown_and_replaced(
    start: Callable[..., Service], command: bytes, place: str
) -> None:
    service = start(SMALL_SILENT_LOOKS=LOOKS)
    (first,) = service.ready()
    client, _ = service.connect()
    client.sendall(command)
    second = service.ready(2)[1]
    assert served_by(service) == second != first
    assert processes.ended(first)
    assert client.recv(1) == b""
    (line,) = service.events(HUNG)
    assert (line["pid"], line["index"], line["level"]) == (first, 0, "error")
    # Where it hung, by file, line and function; no values.
    stack = [text for text in service.log_path.read_text().splitlines() if text.startswith("  File ")]
    assert any(text.endswith(f" in {place}") for text in stack)
    assert all(text.split(", line ")[1].split(" in ")[0].isdecimal() for text in stack)


def test_a_worker_that_was_stopped_for_long_is_replaced(start: Callable[..., Service]) -> None:
    service = start(SMALL_SILENT_LOOKS=LOOKS)
    (first,) = service.ready()
    os.kill(first, signal.SIGSTOP)
    assert served_by(service) == service.ready(2)[1] != first
    assert processes.ended(first)


def test_a_worker_that_was_stopped_for_a_moment_goes_on(start: Callable[..., Service]) -> None:
    service = start(SMALL_SILENT_LOOKS="100")
    (worker,) = service.ready()
    for _ in range(3):
        os.kill(worker, signal.SIGSTOP)
        time.sleep(1)
        os.kill(worker, signal.SIGCONT)
        assert served_by(service) == worker
    assert not service.events(HUNG)


def test_a_master_that_was_stopped_counts_anew(start: Callable[..., Service]) -> None:
    """Machine and service freeze together: on waking, no worker is taken for hung for what none could do."""
    service = start(SMALL_SILENT_LOOKS="20", WEB_CONCURRENCY="2")
    workers = service.ready(2)
    everybody = [service.process.pid, *workers]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    # The master wakes first and looks; the workers take a moment more.
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.3)
    assert served_by(service) in workers
    time.sleep(1)
    assert not service.events(HUNG)


def test_hung_workers_are_replaced_one_at_a_time(start: Callable[..., Service]) -> None:
    service = start(SMALL_SILENT_LOOKS=LOOKS, WEB_CONCURRENCY="3")
    workers = service.ready(3)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    service.ready(6)
    eventually("all are gone", lambda: all(processes.ended(pid) for pid in workers))
    order = [line["event"] for line in service.log if line["event"] in (HUNG, "ready")]
    assert order == ["ready"] * 3 + [HUNG, "ready"] * 3
    assert served_by(service) not in workers


def test_a_hung_worker_does_not_hold_up_the_end(start: Callable[..., Service]) -> None:
    service = start(SMTP_RELAY_DRAIN_SECONDS="0.5")
    (worker,) = service.ready()
    client, _ = service.connect()
    client.sendall(b"hang")
    time.sleep(0.2)
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert processes.ended(worker)


# The certificate


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    return write_pair(tmp_path / "pair")


def start_tls(start: Callable[..., Service], pair: tuple[str, str]) -> Service:
    return start(
        WEB_CONCURRENCY="2",
        SMTP_RELAY_TLS_CERT_PATH=pair[0],
        SMTP_RELAY_TLS_KEY_PATH=pair[1],
        SMALL_STARTED_AFTER="0",
    )


def break_files(pair: tuple[str, str], how: str) -> None:
    for path in map(Path, pair):
        if how == "rubbish":
            path.write_text("rubbish")
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "gone":
            path.unlink()
        elif how == "directory":
            path.unlink()
            path.mkdir()
    if how == "another's key":
        Path(pair[1]).write_bytes(Path(write_pair(Path(pair[0]).parent / "other")[1]).read_bytes())


def kill_all(service: Service, pids: list[int]) -> list[int]:
    """Kills these workers; the pids of as many new ones."""
    before = len(service.events("ready"))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return service.ready(before + len(pids))[before:]


@pytest.mark.parametrize("how", ["rubbish", "empty", "gone", "directory", "another's key"])
def test_workers_that_die_after_a_failed_renewal_have_successors_with_the_last_good_pair(
    start: Callable[..., Service], pair: tuple[str, str], how: str
) -> None:
    service = start_tls(start, pair)
    workers = service.ready(2)
    good = der(pair[0])
    break_files(pair, how)
    service.signal(signal.SIGHUP)
    refused = "certificate_not_reloaded"
    eventually("both refused", lambda: len(service.events(refused)) >= 2)
    # Again and again: recovery needs nothing that a worker has.
    for _ in range(3):
        workers = kill_all(service, workers)
        assert {served_certificate(service) for _ in range(6)} == {good}
    assert "PRIVATE KEY" not in service.log_path.read_text()


def test_the_last_good_pair_is_the_renewed_one(
    start: Callable[..., Service], pair: tuple[str, str], tmp_path: Path
) -> None:
    service = start_tls(start, pair)
    workers = service.ready(2)
    write_pair(tmp_path / "pair")
    renewed = der(pair[0])
    eventually("both reloaded", lambda: len(service.events("certificate_reloaded")) >= 2)
    break_files(pair, "gone")
    workers = kill_all(service, workers)
    assert {served_certificate(service) for _ in range(6)} == {renewed}
    # And what is there when a worker begins is taken, without a signal.
    write_pair(tmp_path / "pair")
    eventually("both took it", lambda: {served_certificate(service) for _ in range(6)} == {der(pair[0])} != {renewed})


@pytest.mark.parametrize(("days", "level"), [(-1, "error"), (3, "warning"), (365, "info")])
def test_a_reloaded_certificate_is_judged_by_its_dates(
    start: Callable[..., Service], pair: tuple[str, str], tmp_path: Path, days: float, level: str
) -> None:
    service = start_tls(start, pair)
    service.ready(2)
    write_pair(tmp_path / "pair", days=days, starts=-30)
    service.signal(signal.SIGHUP)
    eventually("both reloaded", lambda: len(service.events("certificate_reloaded")) >= 2)
    lines = service.events("certificate_reloaded")
    assert {line["level"] for line in lines} == {level}
    assert all(("reason" in line) == (level != "info") for line in lines)


# No worker serves


def greeting(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        octets = b""
        with contextlib.suppress(ConnectionError):
            while received := client.recv(1000):
                octets += received
        return octets


def test_clients_get_421_when_no_worker_is_left(
    start: Callable[..., Service], pair: tuple[str, str], tmp_path: Path
) -> None:
    tls_port = free_port()
    service = start(
        SMTP_RELAY_TLS_PORT=str(tls_port),
        SMTP_RELAY_TLS_CERT_PATH=pair[0],
        SMTP_RELAY_TLS_KEY_PATH=pair[1],
        SMALL_WORKER="crash-after-first",
        SMALL_MARKER=str(tmp_path / "marker"),
        SMALL_STARTED_AFTER="1",
    )
    (first,) = service.ready()
    time.sleep(1.1)
    os.kill(first, signal.SIGKILL)
    assert greeting(service.port) == REPLY
    assert greeting(tls_port) == b""
    assert [greeting(service.port) for _ in range(50)] == [REPLY] * 50
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert service.refuses()


def test_sigterm_while_no_worker_serves(start: Callable[..., Service], tmp_path: Path) -> None:
    """The master has closed its listeners, and waits for a process that is stopped."""
    service = start(
        SMALL_WORKER="crash-after-first",
        SMALL_MARKER=str(tmp_path / "marker"),
        SMALL_STARTED_AFTER="1",
        SMTP_RELAY_DRAIN_SECONDS="1",
    )
    (first,) = service.ready()
    template = template_of(service)
    time.sleep(1.1)
    os.kill(first, signal.SIGKILL)
    assert greeting(service.port) == REPLY
    os.kill(template, signal.SIGSTOP)
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert processes.ended(template)
    assert "Traceback" not in service.log_path.read_text()


def test_the_first_worker_that_serves_again_takes_the_clients(start: Callable[..., Service], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    service = start(SMALL_WORKER="crash-after-first", SMALL_MARKER=str(marker), SMALL_STARTED_AFTER="1")
    (first,) = service.ready()
    time.sleep(1.1)
    os.kill(first, signal.SIGKILL)
    assert greeting(service.port) == REPLY
    marker.unlink()
    second = service.ready(2)[1]
    time.sleep(1.5)
    assert [served_by(service) for _ in range(20)] == [second] * 20


# The template


def test_workers_serve_on_without_the_template_and_get_a_new_one(start: Callable[..., Service]) -> None:
    service = start(WEB_CONCURRENCY="2", SMALL_STARTED_AFTER="0")
    workers = service.ready(2)
    for _ in range(3):
        template = template_of(service)
        os.kill(template, signal.SIGKILL)
        assert served_by(service) in workers
        eventually("a new one", lambda old=template: templates(service) not in ([], [old]))
        workers = kill_all(service, workers)
        assert served_by(service) in workers
    service.signal(signal.SIGTERM)
    assert service.wait() == 0


def test_a_template_that_hangs_is_replaced(start: Callable[..., Service]) -> None:
    service = start(SMALL_STARTED_AFTER="0", SMALL_SILENT_LOOKS="100")
    (worker,) = service.ready()
    os.kill(template_of(service), signal.SIGSTOP)
    assert kill_all(service, [worker])[0] == served_by(service)
    assert service.events("template_hung")


@pytest.mark.parametrize("times", [1, 3])
def test_everything_but_the_master_may_be_killed_at_once(start: Callable[..., Service], times: int) -> None:
    service = start(WEB_CONCURRENCY="3", SMALL_STARTED_AFTER="0")
    service.ready(3)
    for round_number in range(1, times + 1):
        for child in children(service).values():
            child.kill()
        service.ready(3 * (round_number + 1))
        assert len({served_by(service) for _ in range(3)}) >= 1
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert service.log[-1]["event"] == "drained"


def test_nothing_is_left_of_a_service_whose_master_was_killed(start: Callable[..., Service]) -> None:
    service = start(WEB_CONCURRENCY="2")
    service.ready(2)
    family = list(children(service))
    assert len(family) == 3
    service.signal(signal.SIGKILL)
    service.wait()
    eventually("all ended", lambda: all(processes.ended(pid) for pid in family))


def test_two_versions_never_serve_together(start: Callable[..., Service], tmp_path: Path) -> None:
    """The template's successor has to read the files: where they have changed, it is not used."""
    code = tmp_path / "code.py"
    code.write_text("first")
    service = start(WEB_CONCURRENCY="2", SMALL_CODE=str(code), SMALL_STARTED_AFTER="0")
    workers = service.ready(2)
    code.write_text("another version")
    # As long as there is a template, nothing of the files matters.
    workers = kill_all(service, workers)
    os.kill(template_of(service), signal.SIGKILL)
    changed = "code_changed"
    eventually("refused", lambda: service.events(changed))
    assert served_by(service) in workers
    os.kill(workers[0], signal.SIGKILL)
    eventually("not replaced", lambda: service.events("worker_not_replaced"))
    assert [served_by(service) for _ in range(5)] == [workers[1]] * 5
    os.kill(workers[1], signal.SIGKILL)
    assert service.wait() == 1
    assert service.log[-1]["event"] == "no_worker_left"


# Where the master can't take in orphans


def test_without_a_template_workers_are_forked_by_the_master(start: Callable[..., Service]) -> None:
    service = start(WEB_CONCURRENCY="2", SMALL_ADOPTS="no", SMALL_STARTED_AFTER="0", SMALL_SILENT_LOOKS=LOOKS)
    workers = service.ready(2)
    assert set(children(service)) == set(workers)
    workers = kill_all(service, workers)
    os.kill(workers[0], signal.SIGSTOP)
    third = service.ready(5)[4]
    assert third in children(service)
    client, _ = service.connect()
    service.signal(signal.SIGTERM)
    eventually("draining", lambda: service.events("draining"))
    client.sendall(b"still here")
    assert client.recv(100) == b"still here"
    client.close()
    assert service.wait() == 0
