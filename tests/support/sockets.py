"""What tests do with plain sockets, whose other side may have ended the connection already."""

from __future__ import annotations

import contextlib
import socket


def say_no_more(client: socket.socket) -> None:
    """Close our half. No error if the other side was faster: it may end a connection while we still speak."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)


def read_to_end(client: socket.socket) -> bytes:
    """All that comes until the other side closes; an RST counts as the end."""
    octets = b""
    with contextlib.suppress(ConnectionError):
        while more := client.recv(65536):
            octets += more
    return octets
