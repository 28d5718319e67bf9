"""The loop around a dialogue: packets, idleness, drain, and unforeseen errors."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
import pytest

from config.settings import Settings
from relay.limits.client import ProcessLimits
from relay.redis.link import RedisLink
from relay.server.server import Server
from relay.server.sockets import Listener
from relay.smtp import replies
from relay.smtp.connection import Connection, Drain, Pace
from relay.smtp.spool import Body
from relay.smtp.submission import Submission, Verdict
from relay.smtp.transport import PlainWire
from tests.support.encounter import Encounter
from tests.support.encounter import Services as ServicesDouble

LOGIN = b"EHLO client.example\r\nAUTH PLAIN " + base64.b64encode(b"\0any\0good") + b"\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"


class WatchedWire(PlainWire):
    """Remembers what was sent in one go."""

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.sent: list[bytes] = []

    def send(self, octets: bytes, until: float) -> None:
        self.sent.append(octets)
        super().send(octets, until)


def settle() -> None:
    """Lets every greenlet run until it waits for a socket."""
    gevent.sleep(0.001)


def watched_encounter(**options: Any) -> tuple[Encounter, list[bytes]]:
    wires: list[WatchedWire] = []

    def watch(sock: Any) -> WatchedWire:
        wires.append(WatchedWire(sock))
        return wires[0]

    encounter = Encounter(wire=watch, **options)
    settle()
    return encounter, wires[0].sent


def lines(octets: bytes) -> list[str]:
    return [line.decode() for line in octets.splitlines() if line[3:4] == b" "]


def test_each_reply_leaves_in_one_piece() -> None:
    encounter, sent = watched_encounter()
    assert len(sent) == 1
    for command in (b"EHLO client.example\r\n", b"AUTH LOGIN\r\n", b"*\r\n", b"HELP\r\n", b"QUIT\r\n"):
        encounter.send(command)
        settle()
    assert len(sent) == 6
    assert sent[1].startswith(b"250-relay.test\r\n")
    assert sent[1].endswith(b"\r\n250 AUTH PLAIN LOGIN\r\n")
    encounter.rest()


def test_a_pipelined_batch_is_answered_in_one_piece() -> None:
    encounter, sent = watched_encounter()
    encounter.send(LOGIN)
    encounter.send(ENVELOPE + b"DATA\r\n")
    encounter.send(b"x\r\n.\r\n" + ENVELOPE + b"BDAT 1 LAST\r\nyRSET\r\nBREW\r\nQUIT\r\n")
    encounter.rest()
    assert [len(lines(piece)) for piece in sent] == [1, 2, 3, 7]
    assert len(encounter.services.messages) == 2


def test_what_waits_to_be_sent_is_bounded() -> None:
    encounter, sent = watched_encounter()
    encounter.send(LOGIN + b"RSET\r\n" * 1000 + b"QUIT\r\n")
    assert len(lines(encounter.rest())) == 1004
    assert max(len(lines(piece)) for piece in sent) <= Connection.most_unsent


def test_idle_means_between_commands_with_nothing_buffered() -> None:
    encounter = Encounter()
    settle()
    assert encounter.connection.idle
    for octets, idle in [
        (b"NOO", False),
        (b"P\r\n", True),
        (LOGIN, True),
        (ENVELOPE, True),
        (b"DATA\r\n", False),
        (b"body", False),
        (b"\r\n.\r", False),
        (b"\n", True),
        (ENVELOPE + b"BDAT 2\r\n", False),
        (b"x", False),
        (b"y", True),
        (b"RSET\r\nRSE", False),
    ]:
        encounter.send(octets)
        settle()
        assert encounter.connection.idle is idle, octets
    encounter.half_close()
    encounter.rest()
    assert not encounter.connection.idle


def test_not_idle_while_auth_asks() -> None:
    encounter = Encounter()
    encounter.send(b"EHLO client.example\r\nAUTH LOGIN\r\n")
    settle()
    assert not encounter.connection.idle
    encounter.send(b"*\r\n")
    settle()
    assert encounter.connection.idle
    encounter.half_close()
    encounter.rest()


def test_drain_sends_the_idle_away() -> None:
    encounter = Encounter()
    encounter.send(LOGIN)
    settle()
    gevent.get_hub().loop.run_callback(encounter.greenlet.throw, Drain)
    assert lines(encounter.rest())[-1].startswith("421 4.3.2 ")


class SlowServices:
    """Commits when told to."""

    def __init__(self, encounter: Encounter, commit: gevent.event.Event) -> None:
        self._accept: Callable[[Submission], Verdict] = encounter.services.submit
        self._commit = commit
        self.waiting = gevent.event.Event()

    def __call__(self, submission: Submission) -> Verdict:
        self.waiting.set()
        self._commit.wait()
        return self._accept(submission)


def test_a_commit_is_waited_for_and_answered_before_the_drain() -> None:
    """The 250 and the 421 leave together, and the drain never strikes in between."""
    encounter, sent = watched_encounter()
    commit = gevent.event.Event()
    slow = SlowServices(encounter, commit)
    encounter.services.submit = slow  # type: ignore[method-assign]
    encounter.send(LOGIN)
    encounter.send(ENVELOPE + b"DATA\r\n")
    encounter.send(b"x\r\n.\r\n")
    assert slow.waiting.wait(10)
    assert not encounter.connection.idle
    encounter.connection.draining = True
    settle()
    assert encounter.services.messages == []
    commit.set()
    encounter.rest()
    assert len(encounter.services.messages) == 1
    assert [line[:9] for line in lines(sent[-1])] == ["250 2.0.0", "421 4.3.2"]


def test_while_draining_what_was_begun_is_finished() -> None:
    encounter = Encounter()
    encounter.send(LOGIN)
    encounter.send(ENVELOPE + b"DATA\r\n")
    encounter.send(b"half")
    settle()
    encounter.connection.draining = True
    settle()
    assert not encounter.greenlet.dead
    encounter.send(b" a message\r\n.\r\nNOOP\r\n")
    assert [line[:3] for line in lines(encounter.rest())][-3:] == ["250", "250", "421"]
    assert [body for _, _, body in encounter.services.messages] == [b"half a message\r\n"]


def test_a_client_that_comes_while_draining_is_sent_away() -> None:
    encounter = Encounter(draining=True)
    assert [line[:3] for line in lines(encounter.rest())] == ["220", "421"]


def test_a_bug_in_the_midst_of_data_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """To go on would take the rest of the message for commands."""
    encounter = Encounter()
    encounter.send(LOGIN)
    encounter.send(ENVELOPE + b"DATA\r\n")

    def broken(body: Body, octets: bytes) -> None:
        raise ValueError("a bug in the spool")

    monkeypatch.setattr(Body, "write", broken)
    encounter.send(b"x" * 1000 + b"\r\nMAIL FROM:<evil@b.example>\r\nNOOP\r\n.\r\nNOOP\r\n")
    encounter.half_close()
    said = lines(encounter.rest())
    assert said[-2].startswith("354 ")
    assert said[-1].startswith("421 4.3.0 ")
    assert [str(error) for error in encounter.connection_log.errors] == ["a bug in the spool"]


def test_a_bug_in_a_command_is_answered_and_nothing_of_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    encounter = Encounter()
    encounter.send(LOGIN + ENVELOPE)
    with monkeypatch.context() as patched:
        patched.setattr("relay.smtp.transaction.Transaction.add_recipient", lambda *_: 1 / 0)
        encounter.send(b"RCPT TO:<e@f.example>\r\n")
        settle()
    encounter.send(b"RCPT TO:<e@f.example>\r\nQUIT\r\n")
    assert [line[:9] for line in lines(encounter.rest())][-3:] == ["451 4.3.0", "451 4.3.0", "221 2.0.0"]
    assert [type(error) for error in encounter.connection_log.errors] == [ZeroDivisionError]


@pytest.mark.parametrize("octets", [b"DATA\r\nhalf", b"BDAT 5\r\n12345", b"BDAT 5\r\n123", b""])
def test_what_a_client_leaves_behind_is_let_go(octets: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Body.in_memory
    bodies: list[Body] = []
    close = Body.close
    monkeypatch.setattr(Body, "close", lambda body: (bodies.append(body), close(body)))
    encounter = Encounter()
    encounter.send(LOGIN + ENVELOPE + octets)
    settle()
    encounter.client.close()
    encounter.greenlet.join(10)
    assert encounter.greenlet.dead
    assert len(bodies) == (1 if octets else 0)
    assert Body.in_memory == before
    assert encounter.services.messages == []
    assert encounter.connection_log.errors == []


def test_killed_in_mid_message_it_closes_at_once() -> None:
    encounter = Encounter()
    encounter.send(LOGIN + ENVELOPE + b"DATA\r\n" + b"x" * 1500)
    settle()
    encounter.greenlet.kill(timeout=1)
    assert encounter.greenlet.dead
    assert lines(encounter.rest())[-1].startswith("354 ")


def test_the_journal_gets_every_event_and_no_address() -> None:
    encounter = Encounter()
    encounter.send(b"EHLO client.example\r\nAUTH PLAIN " + base64.b64encode(b"\0any\0bad") + b"\r\n")
    encounter.send(LOGIN + ENVELOPE + b"DATA\r\nbody\r\n.\r\n")
    encounter.send(b"MAIL FROM:<a@b.example>\r\nRCPT TO:<refused@d.example>\r\nBDAT 3 LAST\r\nxyzBREW\r\nQUIT\r\n")
    encounter.rest()
    connection_log = encounter.connection_log
    assert connection_log.authentications == [535, 235]
    assert connection_log.verdicts == [
        Verdict(replies.queued("1"), "queued", "1", size=6, recipients=1),
        Verdict(replies.NO_SENDER, "refused", size=3, recipients=1),
    ]
    assert connection_log.refusals == [535, 550, 500]
    assert connection_log.errors == []


def test_a_client_that_does_not_read_is_dropped_in_time() -> None:
    encounter = Encounter(pace=Pace(command=0.3))
    encounter.send(LOGIN)
    encounter.client.settimeout(0.0)
    try:
        while True:
            encounter.client.send(b"HELP\r\n" * 1000)
            settle()
    except BlockingIOError:
        assert not encounter.greenlet.dead
    encounter.greenlet.join(20)
    assert encounter.greenlet.dead
    assert encounter.connection_log.errors == []
    encounter.client.close()


def test_a_farewell_does_not_wait_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "linger_seconds", 0.1)
    encounter = Encounter(pace=Pace(command=0.3, data_pause=0.3))
    encounter.send(LOGIN + ENVELOPE + b"DATA\r\n")
    settle()
    encounter.greenlet.join(20)
    assert encounter.greenlet.dead
    assert lines(encounter.rest())[-1].startswith("421 4.4.2 ")


def test_a_connection_has_an_end_whatever_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "linger_seconds", 0.1)
    encounter = Encounter(pace=Pace(connection=0.3))
    while not encounter.greenlet.dead:
        encounter.send(b"NOOP\r\n")
        gevent.sleep(0.05)
    assert lines(encounter.rest())[-1].startswith("421 4.4.2 ")


def test_who_has_logged_in_may_take_longer_for_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "linger_seconds", 0.1)
    stranger = Encounter(pace=Pace(command=600.0, login=0.3))
    known = Encounter(pace=Pace(command=600.0, login=0.3))
    known.send(LOGIN)
    stranger.greenlet.join(20)
    assert lines(stranger.rest())[-1].startswith("421 4.4.2 ")
    gevent.sleep(0.5)
    known.send(b"NOOP\r\n")
    assert not known.greenlet.dead
    known.send(b"QUIT\r\n")
    assert lines(known.rest())[-1].startswith("221 ")
    # And the longest that a stranger may take is never more than that.
    hurried = Encounter(pace=Pace(command=0.3, login=600.0))
    hurried.greenlet.join(20)
    assert lines(hurried.rest())[-1].startswith("421 4.4.2 ")


def test_the_first_octet_of_data_may_take_long_and_the_rest_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "linger_seconds", 0.1)
    encounter = Encounter(pace=Pace(command=600.0, data_pause=600.0, data_grace=0.3))
    encounter.send(LOGIN + ENVELOPE + b"DATA\r\n")
    gevent.sleep(0.8)
    assert not encounter.greenlet.dead
    encounter.send(b"Subject: s\r\n")
    while not encounter.greenlet.dead:
        encounter.send(b"x")
        gevent.sleep(0.05)
    assert lines(encounter.rest())[-1].startswith("421 4.4.2 ")


class Torrent(PlainWire):
    """Always has something to read at once, as from a client that is quicker than we are."""

    def __init__(self, sock: Any, packets: list[bytes]) -> None:
        super().__init__(sock)
        self._packets = iter(packets)

    def _read(self, _size: int, _until: float) -> bytes:
        return next(self._packets, b"")


@pytest.mark.parametrize(
    "packets", [[b"NOOP\r\n"] * 1000, [ENVELOPE + b"DATA\r\n", *([b"x" * 60_000] * 100), b"\r\n.\r\n"]]
)
def test_one_that_never_stops_leaves_the_others_their_turn(packets: list[bytes]) -> None:
    """gevent's recv gives way only when there is nothing to read."""
    turns = 0

    def others() -> None:
        nonlocal turns
        while not encounter.greenlet.dead:
            turns += 1
            gevent.sleep(1e-6)

    encounter = Encounter(wire=lambda sock: Torrent(sock, [LOGIN, *packets]))
    waiting = gevent.spawn(others)
    said = encounter.rest()
    waiting.join()
    assert turns > 40
    assert len(lines(said)) > 5


def test_small_replies_are_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP_NODELAY: else a reply waits up to 40 ms for the client to acknowledge the one before."""
    options: list[int] = []

    class Recorder:
        idle = False

        def __init__(self, sock: Any, *_: Any, **__: Any) -> None:
            self._socket = sock

        def run(self, **_: Any) -> None:
            options.append(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr("relay.server.server.Connection", Recorder)
    settings = Settings(database_url="postgresql://unused")
    link = RedisLink(None, verify_tls=True, timeout=1, pause=1)
    server = Server(settings, ServicesDouble(), ProcessLimits(settings, link), certificate=None)
    listening = gevent.socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(1)
    serving = gevent.spawn(server.serve, [Listener(listening, implicit_tls=False)])
    client = gevent.socket.create_connection(listening.getsockname(), 10)
    assert client.recv(1) == b""
    server.drain()
    serving.join(10)
    assert [bool(option) for option in options] == [True]
