"""The sockets that the relay listens on: bound once, before any worker is forked, and shared by all of them.

Sharing one socket instead of SO_REUSEPORT means that a worker that ends takes no queued client with it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from config.settings import Settings
from relay.core.frozen import frozen

#: As many clients as may wait for a worker; the kernel cuts it to net.core.somaxconn.
BACKLOG = 4096


class CannotListen(Exception):
    """An address can't be bound. The text is one line that names the variable, fit for stderr."""


@frozen
class Listener:
    """One bound, listening, non-blocking stream socket. `implicit_tls`: the handshake comes first (RFC 8314)."""

    socket: socket.socket
    implicit_tls: bool

    @classmethod
    def from_fd(cls, fd: int, implicit_tls: bool) -> Listener:
        """Takes over a descriptor that a forked process inherited."""
        return cls(socket.socket(fileno=fd), implicit_tls)


def try_to_bind(settings: Settings) -> None:
    """As `bind`, but nothing listens, and all is released at once. Raises CannotListen."""
    for listener in _bind_smtp(settings, listens=False):
        listener.socket.close()


def bind(settings: Settings) -> list[Listener]:
    """Every address of `host` on `port`, and on `tls_port` if that is set.

    Raises CannotListen; then nothing stays bound.
    """
    return _bind_smtp(settings, listens=True)


def _bind_smtp(settings: Settings, *, listens: bool) -> list[Listener]:
    ports = [("SMTP_RELAY_PORT", settings.port, False)]
    if settings.tls_port is not None:
        ports.append(("SMTP_RELAY_TLS_PORT", settings.tls_port, True))
    return _bind(settings.host, ports, listens=listens)


def bind_http(settings: Settings) -> list[Listener]:
    """Every address of `host` on `http_port`. Raises CannotListen; then nothing stays bound."""
    return _bind(settings.host, [("SMTP_RELAY_HTTP_PORT", settings.http_port, settings.http_tls)], listens=True)


def _bind(host: str, ports: Sequence[tuple[str, int, bool]], *, listens: bool) -> list[Listener]:
    listeners: list[Listener] = []
    try:
        for variable, port, implicit_tls in ports:
            for family, address in _addresses(host, port):
                made = _stream_socket(family, address, variable, port, listens=listens)
                listeners.append(Listener(made, implicit_tls))
    except CannotListen:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _addresses(host: str, port: int) -> Sequence[tuple[socket.AddressFamily, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"SMTP_RELAY_HOST is {host!r}: should be an address of this machine, or a name") from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _stream_socket(
    family: socket.AddressFamily, address: tuple[object, ...], variable: str, port: int, *, listens: bool
) -> socket.socket:
    made: socket.socket | None = None
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Only `::` is meant to take IPv4 too; beside an IPv4 socket of the same name it must not.
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address[0] == "::" else 1)
        made.bind(address)
        if listens:
            made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        if made is not None:
            made.close()
        raise CannotListen(_reason(error, variable, port, str(address[0]))) from error
    return made


def _reason(error: OSError, variable: str, port: int, host: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{variable} is {port}: should be a free port, another process listens on {host} there"
    if error.errno == errno.EACCES:
        return f"{variable} is {port}: should be a port that this user may bind (1024 or above)"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"SMTP_RELAY_HOST is {host!r}: should be an address of this machine"
    return f"{variable} is {port}: can't listen on {host}: {os.strerror(error.errno or 0)}"
