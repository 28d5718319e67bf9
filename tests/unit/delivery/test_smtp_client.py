"""Replies: whole, within bounds, by a moment in time, however they come; and commands of one line each."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.smtp_client import ConnectionBroken, Reply, SmtpConnection


@pytest.fixture
def pair() -> Iterator[tuple[SmtpConnection, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield SmtpConnection(ours), theirs


def soon() -> float:
    return time.monotonic() + 20


def read(octets: bytes) -> Reply | str:
    """The reply in these octets, behind which the connection is closed; or the code of what is wrong."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=lambda: (theirs.sendall(octets), theirs.shutdown(socket.SHUT_WR)))
        writer.start()
        try:
            return SmtpConnection(ours).reply(soon())
        except ConnectionBroken as broken:
            return broken.code
        finally:
            ours.close()
            writer.join()


@pytest.mark.parametrize(
    ("octets", "reply"),
    [
        (b"250 2.1.0 Ok\r\n", Reply(250, ("2.1.0 Ok",))),
        (b"250\r\n", Reply(250, ("",))),
        (b"250 \r\n", Reply(250, ("",))),
        (b"250-a\r\n250-b\r\n250 c\r\n", Reply(250, ("a", "b", "c"))),
        (b"250-\r\n250\r\n", Reply(250, ("", ""))),
        (b"550 5.1.1 no\n", Reply(550, ("5.1.1 no",))),
        (b"550 caf\xc3\xa9 \x1b[31m\r\n", Reply(550, ("caf? ?[31m",))),
        (b"250-a\r\n251 b\r\n", "NotSmtp"),
        (b"2500 a\r\n", "NotSmtp"),
        (b"199 a\r\n", "NotSmtp"),
        (b"650 a\r\n", "NotSmtp"),
        (b"\r\n", "NotSmtp"),
        (b"hello\r\n", "NotSmtp"),
        (b"250 half", "ConnectionClosed"),
        (b"250-half\r\n", "ConnectionClosed"),
        (b"", "ConnectionClosed"),
        (b"250 " + b"x" * 100_000, "EndlessReply"),
        (b"250-x\r\n" * 1000 + b"250 x\r\n", "EndlessReply"),
        # One piece, and under the bound of what is read ahead.
        (b"250 " + b"x" * 4093 + b"\r\n", "EndlessReply"),
        (b"250 " + b"x" * 4091 + b"\r\n", Reply(250, ("x" * 4091,))),
        ((b"250-" + b"x" * 1000 + b"\r\n") * 100 + b"250 x\r\n", "EndlessReply"),
    ],
)
def test_replies(octets: bytes, reply: Reply | str) -> None:
    assert read(octets) == reply


@given(st.binary(max_size=200))
def test_any_octets_are_a_reply_or_break_the_connection(octets: bytes) -> None:
    found = read(octets)
    if isinstance(found, Reply):
        assert 200 <= found.code < 600
        assert all(line.isascii() and line.isprintable() for line in found.lines)
        assert set(found.codes) <= set("0123456789. ")
    else:
        assert found.isalpha()


@pytest.mark.parametrize(
    ("lines", "code", "status", "text"),
    [
        (("5.1.1 no user",), 550, "5.1.1", "no user"),
        (("5.1.1 no", "5.1.1 user"), 550, "5.1.1", "no user"),
        (("4.1.1 no user",), 550, "", "4.1.1 no user"),
        (("5.1.1no user",), 550, "", "5.1.1no user"),
        (("5.1.1",), 550, "5.1.1", ""),
        (("no 5.1.1",), 550, "", "no 5.1.1"),
        (("5.1234.1 no",), 550, "", "5.1234.1 no"),
    ],
)
def test_enhanced_status_codes(lines: tuple[str, ...], code: int, status: str, text: str) -> None:
    reply = Reply(code, lines)
    assert (reply.status, reply.text) == (status, text)


def test_octets_now_and_then_are_not_in_time(pair: tuple[SmtpConnection, socket.socket]) -> None:
    connection, theirs = pair
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(0.02):
            theirs.sendall(b"2")

    thread = threading.Thread(target=drip)
    thread.start()
    with pytest.raises(ConnectionBroken) as broken:
        connection.reply(time.monotonic() + 0.5)
    ended.set()
    thread.join()
    assert broken.value.code == "TimeoutError"


def test_a_reply_that_has_come_is_read_although_its_time_is_over(pair: tuple[SmtpConnection, socket.socket]) -> None:
    connection, theirs = pair
    theirs.sendall(b"250-Ok\r\n250 Ok\r\n")
    assert connection.reply(time.monotonic() - 1).code == 250
    theirs.sendall(b"250-Ok\r\n25")
    with pytest.raises(ConnectionBroken, match="TimeoutError"):
        connection.reply(time.monotonic() - 1)


def test_no_command_is_sent_when_its_time_is_over(pair: tuple[SmtpConnection, socket.socket]) -> None:
    connection, theirs = pair
    with pytest.raises(ConnectionBroken, match="TimeoutError"):
        connection.ask("NOOP", time.monotonic() - 1)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


@pytest.mark.parametrize("command", ["RCPT TO:<a@b>\r\nRCPT TO:<c@d>", "MAIL\n", "NOOP\x00", "NOOP \x7f"])
def test_a_command_is_one_line(pair: tuple[SmtpConnection, socket.socket], command: str) -> None:
    connection, theirs = pair
    with pytest.raises(ValueError, match="control"):
        connection.put([command], soon())
    connection.close()
    assert theirs.recv(100) == b""


def test_what_ehlo_offers(pair: tuple[SmtpConnection, socket.socket]) -> None:
    connection, theirs = pair
    theirs.sendall(b"250-host says hello\r\n250-size 100\r\n250-AUTH=LOGIN\r\n250-AUTH PLAIN\r\n250 PIPELINING\r\n")
    connection.greet("client.example", soon())
    assert connection.extensions == {"SIZE": "100", "AUTH": "LOGIN PLAIN", "PIPELINING": ""}
    assert theirs.recv(100) == b"EHLO client.example\r\n"


def test_a_connection_on_which_something_was_said_is_not_silent(pair: tuple[SmtpConnection, socket.socket]) -> None:
    connection, theirs = pair
    assert connection.silent()
    theirs.sendall(b"421 closing\r\n")
    assert not connection.silent()


@pytest.mark.parametrize("command", ["NOOP", "EHLO client.example"])
def test_to_a_server_that_said_more_than_it_was_asked_for_nothing_is_sent(
    pair: tuple[SmtpConnection, socket.socket], command: str
) -> None:
    connection, theirs = pair
    theirs.sendall(b"220 x\r\n")
    connection.reply(soon())
    theirs.sendall(b"250 early\r\n")
    with pytest.raises(ConnectionBroken) as broken:
        connection.ask(command, soon())
    assert broken.value.code == "SaidUnasked"
    assert connection.babbled
    connection.close()
    assert theirs.recv(100) == b""


def test_replies_that_are_due_are_not_unasked(pair: tuple[SmtpConnection, socket.socket]) -> None:
    connection, theirs = pair
    theirs.sendall(b"220 x\r\n250 a\r\n250 b\r\n")
    connection.put(["MAIL", "RCPT"], soon())  # before the greeting is read, so that three are due
    assert [connection.reply(soon()).text for _ in range(3)] == ["x", "a", "b"]
    assert not connection.babbled
    theirs.sendall(b"421 closing\r\n")
    assert not connection.silent()
    assert not connection.babbled


@pytest.mark.parametrize(
    ("size", "limit"),
    [("1000", 1000), ("0", 0), ("", 0), ("x", 0), ("-1", 0), ("1 2", 0), ("9" * 20, 10**20 - 1), ("9" * 5000, 0)],
)
def test_the_limit_of_size(pair: tuple[SmtpConnection, socket.socket], size: str, limit: int) -> None:
    connection, _ = pair
    connection.extensions["SIZE"] = size
    assert connection.size_limit == limit
