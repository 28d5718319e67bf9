"""The end of a process, asked for: what can be finished is finished, every client hears a reply, and nothing is
lost."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.database import query
from tests.faults.load import Conversation, Fate, Load, make_mail, plain
from tests.faults.stage import Stage, greets, wait_until
from tests.support.certificates import write_pair
from tests.support.sockets import read_to_end

SetUp = Callable[..., Stage]


def _plain(stage: Stage) -> socket.socket:
    return socket.create_connection(("127.0.0.1", stage.relay.port), timeout=20)


def test_sigterm_with_a_client_in_each_state(stage: SetUp) -> None:
    ground = stage()
    token = ground.key.token
    silent = _plain(ground)
    assert silent.recv(100).startswith(b"220")
    in_auth = Conversation(ground.relay.port, None)
    in_auth.command(b"AUTH LOGIN", b"334")
    idle = Conversation(ground.relay.port, token)
    half = Conversation(ground.relay.port, token)
    mail = make_mail(1)
    half.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<r1-0@x.example>\r\nDATA\r\n")
    for code in (b"250", b"250", b"354"):
        half.expect(code)
    half.send(mail.octets[:100])
    waiting = Conversation(ground.relay.port, token)
    assert waiting.deliver(make_mail(3)).fate is Fate.ACCEPTED  # so that Postgres is connected, which takes round trips
    committing = make_mail(2)
    ground.postgres_proxy.delay_to_client = 0.3
    answers: list[Fate] = []
    thread = threading.Thread(target=lambda: answers.append(waiting.deliver(committing).fate))
    thread.start()
    time.sleep(0.1)

    began = time.monotonic()
    ground.relay.send_signal(signal.SIGTERM)
    assert idle.reply().startswith(b"421 4.3.2")
    assert read_to_end(silent).startswith(b"421 4.3.2")
    # In the midst of something: finished first, and sent away then.
    half.send(mail.octets[100:] + b".\r\n")
    assert half.reply().startswith(b"250")
    assert half.reply().startswith(b"421 4.3.2")
    thread.join()
    assert answers == [Fate.ACCEPTED]
    assert waiting.reply().startswith(b"421 4.3.2")
    in_auth.send(plain(token) + b"\r\n")
    in_auth.expect(b"334")
    in_auth.send(b"*\r\n")
    in_auth.expect(b"501")
    assert in_auth.reply().startswith(b"421 4.3.2")
    wait_until(lambda: not ground.relay.running, "the relay ends", seconds=15)
    assert time.monotonic() - began < 15
    for client in (in_auth, idle, half, waiting):
        client.close()
    silent.close()
    subjects = {row[0] for row in query(ground.database_url, "SELECT subject FROM emails")}
    assert subjects == {"1", "2", "3"}
    ground.check_log()


def test_a_client_that_does_not_finish_is_cut_off_at_the_deadline(stage: SetUp) -> None:
    ground = stage(SMTP_RELAY_DRAIN_SECONDS="4")
    stuck = Conversation(ground.relay.port, ground.key.token)
    stuck.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<r1-0@x.example>\r\nDATA\r\n")
    for code in (b"250", b"250", b"354"):
        stuck.expect(code)
    ground.relay.send_signal(signal.SIGTERM)
    took = wait_until(lambda: not ground.relay.running, "the relay ends", seconds=20)
    assert took > 1
    stuck.close()
    assert query(ground.database_url, "SELECT count(*) FROM emails") == [(0,)]
    ground.check_log()


def test_sigterm_in_a_tls_handshake(stage: SetUp, tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path / "tls")
    ground = stage(
        SMTP_RELAY_TLS_CERT_PATH=certificate, SMTP_RELAY_TLS_KEY_PATH=key, SMTP_RELAY_TLS_HANDSHAKE_SECONDS="2"
    )
    shaking = Conversation(ground.relay.port, None)
    shaking.command(b"STARTTLS", b"220")
    idle = Conversation(ground.relay.port, ground.key.token, tls=True)
    ground.relay.send_signal(signal.SIGTERM)
    assert idle.reply().startswith(b"421 4.3.2")
    assert read_to_end(shaking.socket) == b""
    wait_until(lambda: not ground.relay.running, "the relay ends", seconds=20)
    shaking.close()
    idle.close()
    ground.check_log()


def test_sigterm_under_load_loses_nothing_and_publishes_everything(stage: SetUp) -> None:
    ground = stage(WEB_CONCURRENCY="2")
    with Load(ground.relay.port, ground.key.token, clients=8, pause=0.05, patience=30) as load:
        wait_until(lambda: load.accepted() > 20, "mail flows")
        for _ in range(2):
            ground.relay.send_signal(signal.SIGTERM)
            wait_until(lambda: not ground.relay.running, "the relay ends", seconds=30)
            ground.relay.start()
            before = load.accepted()
            wait_until(lambda before=before: load.accepted() > before + 10, "mail flows again")  # type: ignore[misc]
    books = ground.audit(load.mails)
    books.check()
    # SIGTERM never leaves a client in doubt about a message.
    assert books.rows_without_250 == 0
    assert load.fates()[Fate.AFTER_DOT.value] == 0
    ground.check_log()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_one_worker_after_the_other_is_replaced_and_no_connection_is_refused(stage: SetUp, how: signal.Signals) -> None:
    ground = stage(WEB_CONCURRENCY="2")
    with Load(ground.relay.port, ground.key.token, clients=64, pause=1.0, patience=60) as load:
        wait_until(lambda: load.accepted() > 64, "mail flows", seconds=60)
        for victim in ground.workers():
            victim.send_signal(how)
            wait_until(lambda victim=victim: _replaced(ground, victim), "it is replaced", seconds=60)  # type: ignore[misc]
            before = load.accepted()
            wait_until(lambda before=before: load.accepted() > before + 32, "mail flows", seconds=60)  # type: ignore[misc]
    assert load.not_greeted["ConnectionRefusedError"] == 0, load.not_greeted
    ground.audit(load.mails).check()
    if how == signal.SIGTERM:
        assert load.fates()[Fate.AFTER_DOT.value] == 0
    ground.check_log()


def _replaced(ground: Stage, victim: psutil.Process) -> bool:
    workers = ground.workers()
    return len(workers) == 2 and victim not in workers


def test_a_service_that_is_killed_serves_again_at_once(stage: SetUp) -> None:
    ground = stage()
    with contextlib.closing(Conversation(ground.relay.port, ground.key.token)) as client:
        assert client.deliver(make_mail(1)).fate is Fate.ACCEPTED
        ground.kill_family()
        assert greets(ground.relay.port)
    ground.check_log()
