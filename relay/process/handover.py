"""What the first child hands to the master: all that the service needs besides code, read once."""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from collections.abc import Sequence


class Handover:
    """What the first child found out and opened."""

    def __init__(self, header: bytes, rest: bytes, descriptors: Sequence[int]) -> None:
        workers, drain_seconds, style, settings_octets, implicit_tls = header.decode("ascii").split(" ")
        self.workers = int(workers)
        #: Seconds that busy connections get to finish.
        self.drain_seconds = float(drain_seconds)
        #: Whether log lines are JSON.
        self.json_lines = style == "json"
        #: As JSON. Holds secrets.
        self.settings = rest[: int(settings_octets)]
        #: The last pair that was good (`relay.server.certificate.Pair`, encoded); empty without TLS.
        self.certificate = rest[int(settings_octets) :]
        #: Shared memory: see `relay.server.connection_table`.
        self.table, *listening = descriptors
        #: Listening descriptors, each with whether it is for implicit TLS.
        self.listeners = [(fd, flag == "1") for fd, flag in zip(listening, implicit_tls, strict=True)]


def send(
    channel: socket.socket,
    *,
    settings: bytes,
    certificate: bytes,
    workers: int,
    drain_seconds: float,
    json_lines: bool,
    listeners: Sequence[tuple[int, bool]],
    table: int,
) -> None:
    """The first child's last words; the parts are those of `Handover`. Ends with the end of the channel."""
    implicit_tls = "".join("1" if implicit else "0" for _, implicit in listeners)
    style = "json" if json_lines else "text"
    header = f"{workers} {drain_seconds!r} {style} {len(settings)} {implicit_tls}\n".encode("ascii")
    socket.send_fds(channel, [b"+"], [table, *(fd for fd, _ in listeners)])
    channel.sendall(header + settings + certificate)


def receive(channel: socket.socket) -> Handover | None:
    """None when the child ended without a word; what was wrong it has said itself."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 64)
    document = b"".join(iter(lambda: channel.recv(65536), b""))
    header, found, rest = document.partition(b"\n")
    if not found:
        return None
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return Handover(header, rest, descriptors)
