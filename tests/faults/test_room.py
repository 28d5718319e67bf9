"""No room: a disk that takes nothing more for the spool, and no file descriptor left."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import smtplib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from scripts.database import query
from tests.faults.load import Conversation, Fate, Mail, make_mail
from tests.faults.stage import Stage, wait_until

SetUp = Callable[..., Stage]
LARGE = 200_000


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that has room for less than one large message."""
    folder = tmp_path / "spool"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=64k none {folder} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount")
    yield folder
    os.system(f"umount {folder}")


def _subjects(stage: Stage) -> list[str]:
    return sorted(str(row[0]) for row in query(stage.database_url, "SELECT subject FROM emails"))


def _check(stage: Stage, make_room: Callable[[], None]) -> None:
    with contextlib.closing(stage.talk()) as client:
        attempt = client.deliver(make_mail(1, size=LARGE))
        assert (attempt.fate, attempt.reply[:9]) == (Fate.TEMPORARY, b"452 4.3.1")
        # The connection goes on, and what fits into memory is taken.
        assert client.deliver(make_mail(2)).fate is Fate.ACCEPTED
        make_room()
        assert client.deliver(make_mail(1, size=LARGE)).fate is Fate.ACCEPTED
    assert _subjects(stage) == ["1", "2"]


def test_a_full_spool_is_452_and_loses_nothing(stage: SetUp, full_disk: Path) -> None:
    ground = stage(SMTP_RELAY_SPOOL_DIR=str(full_disk))
    _check(ground, lambda: _run(f"mount -o remount,size=10m {full_disk}"))


def _run(command: str) -> None:
    assert os.system(command) == 0


def test_a_spool_folder_that_is_gone_is_452_and_comes_back(stage: SetUp, tmp_path: Path) -> None:
    """The same error as a disk that can't be written; also where none may be mounted."""
    folder = tmp_path / "spool"
    folder.mkdir()
    ground = stage(SMTP_RELAY_SPOOL_DIR=str(folder))
    shutil.rmtree(folder)
    _check(ground, folder.mkdir)


def test_without_descriptors_new_clients_get_421_and_connected_ones_continue(stage: SetUp) -> None:
    ground = stage()
    with contextlib.closing(ground.talk()) as inside, contextlib.ExitStack() as others:
        assert inside.deliver(make_mail(1)).fate is Fate.ACCEPTED
        (worker,) = ground.workers()
        open_now = psutil.Process(worker.pid).num_fds()
        soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (open_now + 10, hard))
        answers = []
        for _ in range(30):
            client = others.enter_context(socket.create_connection(("127.0.0.1", ground.relay.port), timeout=20))
            answers.append(client.recv(200)[:9])
        assert b"421 4.3.2" in answers
        assert set(answers) <= {b"421 4.3.2", answers[0]}
        assert inside.deliver(make_mail(2)).fate is Fate.ACCEPTED
        # A large message needs a file.
        attempt = inside.deliver(make_mail(3, size=LARGE))
        assert attempt.fate in (Fate.ACCEPTED, Fate.TEMPORARY)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))
    wait_until(lambda: _accepted(ground), "clients are let in again")
    assert ground.workers() == [worker]
    ground.check_log(allowed=["Too many open files"])


def _accepted(ground: Stage) -> bool:
    with contextlib.closing(Conversation(ground.relay.port, ground.key.token)) as client:
        return client.deliver(make_mail(4)).fate is Fate.ACCEPTED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system with room for two large messages."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=6000000 none {folder} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount")
    yield folder
    os.system(f"umount {folder}")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_spool_with_room_for_two_takes_eight_one_after_the_other(
    stage: SetUp, small_disk: Path, announced: bool, workers: str
) -> None:
    """Who announced no size may be told to come again, but not all of them."""
    ground = stage(SMTP_RELAY_SPOOL_DIR=str(small_disk), WEB_CONCURRENCY=workers)
    mails = [make_mail(number, size=2_500_000) for number in range(8)]
    codes = []

    def send(mail: Mail) -> None:
        with smtplib.SMTP("127.0.0.1", ground.relay.port, timeout=90) as client:
            client.ehlo("client.example")
            client.login("user", ground.key.token)
            client.mail("ann@example.com", [f"size={len(mail.octets)}"] if announced else [])
            client.rcpt(mail.recipients[0])
            codes.append(client.data(mail.octets)[0])

    threads = [threading.Thread(target=send, args=(mail,)) for mail in mails]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if announced:
        assert codes == [250] * 8
    else:
        assert 250 in codes
        assert set(codes) <= {250, 452}
    assert len(_subjects(ground)) == codes.count(250)
    ground.check_log()
    assert not any("unexpected" in line for line in ground.log_lines())
