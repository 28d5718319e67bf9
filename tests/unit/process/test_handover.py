"""What the first child hands over arrives as it was, and half of it is nothing."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from relay.process import handover

PARTS: dict[str, Any] = {
    # A line end in each, which ends the header and nothing else.
    "settings": b'{"a": "\xc3\xbc"}\n',
    "certificate": b"pair\n\0octets" * 20_000,
    "workers": 3,
    "drain_seconds": 2.5,
    "json_lines": False,
}


def test_everything_arrives_as_it_was() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    plain, implicit = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    with ours, theirs, plain, implicit:

        def send() -> None:
            with theirs:
                listeners = [(plain.fileno(), False), (implicit.fileno(), True)]
                handover.send(theirs, **PARTS, listeners=listeners, table=reading)

        sending = threading.Thread(target=send)
        sending.start()
        received = handover.receive(ours)
        sending.join(20)
        assert received is not None
        assert {name: getattr(received, name) for name in PARTS} == PARTS
        assert [implicit_tls for _, implicit_tls in received.listeners] == [False, True]
        for (descriptor, _), listener in zip(received.listeners, (plain, implicit), strict=True):
            assert not os.get_inheritable(descriptor)
            with socket.socket(fileno=descriptor) as copy:
                assert copy.getsockname() == listener.getsockname()
        os.write(writing, b"table")
        assert os.read(received.table, 10) == b"table"
        os.close(received.table)
    os.close(reading)
    os.close(writing)


def test_a_child_that_ended_without_a_word_hands_over_nothing() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        assert handover.receive(ours) is None
