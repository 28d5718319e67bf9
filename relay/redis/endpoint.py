"""Where Redis is, and how a connection to it is made: by redis-py, which knows names, TLS, users and databases."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry

from relay.core.tls_client import ACCEPTED_BY_LATER_PYTHON, REFUSED_BY_LATER_PYTHON

#: What a URL may say to a pool of connections, which there is none of.
_OF_POOLS: Final = ("max_connections", "timeout")


class RedisConnection(Protocol):
    """What is used of a connection of redis-py's, which has few types."""

    #: Connected, and under TLS where that is set. There from `connect` on.
    connected_socket: socket.socket

    def connect(self) -> object: ...

    def disconnect(self) -> object: ...

    def can_read(self, timeout: float = 0) -> bool: ...

    def send_command(self, *words: object) -> object: ...

    def read_response(self) -> object: ...


class _KnowsItsSocket:
    """Mixed into a class of redis-py's: what uses the connection can get its socket.

    `_connect` is the method that redis-py leaves to its subclasses (abstract in AbstractConnection): it returns the
    socket, connected and under TLS where that is set. Afterwards redis-py has no public attribute for the socket.
    """

    connected_socket: socket.socket

    def _connect(self) -> socket.socket:
        self.connected_socket = super()._connect()  # type: ignore[misc]  # of the class that this is mixed into
        return self.connected_socket


class _TcpConnection(_KnowsItsSocket, Connection):
    pass


class SilentTls(redis.exceptions.ConnectionError):
    """The server took the connection and did not answer the TLS handshake in time."""


class _TlsConnection(_KnowsItsSocket, SSLConnection):
    def _wrap_socket_with_ssl(self, sock: socket.socket) -> socket.socket:
        """As redis-py has it, called by its `_connect`; a server without TLS, which is silent, has another error."""
        try:
            wrapped: socket.socket = super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        except TimeoutError as error:
            raise SilentTls from error
        return wrapped


class _UnixConnection(_KnowsItsSocket, UnixDomainSocketConnection):
    pass


_CLASSES: Final[dict[object, Callable[..., RedisConnection]]] = {
    SSLConnection: _TlsConnection,
    UnixDomainSocketConnection: _UnixConnection,
}


class Endpoint:
    """One server."""

    def __init__(self, url: str, *, verify_tls: bool, timeout: float) -> None:
        """`url`: as redis-py reads it; what it says of a connection counts more than the rest. `timeout`: seconds for a
        reply. Raises ValueError for a URL that is none."""
        said: dict[str, object] = parse_url(url)  # type: ignore[no-untyped-call]
        self._class = _CLASSES.get(said.pop("connection_class", Connection), _TcpConnection)
        self._options: dict[str, object] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": max(timeout, 1.0),
            # By default redis-py would try ten times.
            "retry": Retry(NoBackoff(), 0),
            "driver_info": None,
        }
        if self._class is _TlsConnection:
            self._options |= {
                "ssl_include_verify_flags": [ACCEPTED_BY_LATER_PYTHON],
                "ssl_exclude_verify_flags": [REFUSED_BY_LATER_PYTHON],
            }
            if not verify_tls:
                self._options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        self._options |= {name: value for name, value in said.items() if name not in _OF_POOLS}
        # That of `relay.redis.protocol`, whatever the URL has.
        self._options["protocol"] = 2

    def connection(self) -> RedisConnection:
        """A new connection, to be connected by its `connect`."""
        return self._class(**self._options)
