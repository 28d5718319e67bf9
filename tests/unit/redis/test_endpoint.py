"""Connections are made as the URL says, over what it says, and nothing of redis-py's but its public names is used."""

from __future__ import annotations

import ast
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from redis.connection import AbstractConnection, SSLConnection

from relay.core.errors import RedisUnavailable
from relay.redis import endpoint
from relay.redis.link import RedisLink

RELAY = Path(endpoint.__file__).parents[1]


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.acl_deluser("relay")


def link_to(url: str) -> RedisLink:
    return RedisLink(url, verify_tls=True, timeout=5.0, pause=0.1)


def with_user(url: str, user: str, parameters: str = "", path: str = "/0") -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}@{parts.hostname}:{parts.port}", path=path, query=parameters).geturl()


@pytest.mark.parametrize(
    "parameters",
    [
        "",
        "protocol=2",
        "protocol=3",
        "max_connections=5",
        "timeout=3",
        "socket_timeout=4.5",
        "health_check_interval=30",
    ],
)
def test_parameters_of_the_url(redis_url: str, parameters: str) -> None:
    """Those of pools mean nothing here, and the protocol is ours to choose: a hash is a list of octets in RESP2."""
    link = link_to(f"{redis_url}?{parameters}")
    link.call("HSET", "hash", "a", "1")
    assert link.call("HGETALL", "hash") == [b"a", b"1"]
    link.close()


def test_user_password_and_database(redis_url: str, server: redis.Redis) -> None:
    server.acl_setuser("relay", enabled=True, passwords=["+p@ss:w/ord"], keys=["*"], commands=["+@all"])
    link = link_to(with_user(redis_url, "relay:p%40ss%3Aw%2Ford", path="/3"))
    link.call("SET", "where", "three")
    assert link.call("ACL", "WHOAMI") == b"relay"
    link.close()
    assert server.get("where") is None
    with redis.Redis.from_url(with_user(redis_url, "relay:p%40ss%3Aw%2Ford", path="/3")) as client:
        assert client.getdel("where") == b"three"


def test_a_wrong_password_is_said_by_name(redis_url: str) -> None:
    link = link_to(with_user(redis_url, "relay:wrong"))
    with pytest.raises(RedisUnavailable):
        link.call("PING")
    assert "AuthenticationError" in link.failure
    link.close()


def test_a_socket_of_unix(redis_url: str, tmp_path: Path) -> None:
    """A pipe to the real server stands behind it, in threads: redis-py blocks this one."""
    target = urlsplit(redis_url)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "redis.sock"))
    listening.listen(1)

    def copy(source: socket.socket, sink: socket.socket) -> None:
        while octets := source.recv(65536):
            sink.sendall(octets)
        sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        client, _ = listening.accept()
        with client, socket.create_connection((target.hostname, target.port)) as behind:
            forth = threading.Thread(target=copy, args=(client, behind))
            forth.start()
            copy(behind, client)
            forth.join()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    link = link_to(f"unix://:{target.password}@{tmp_path}/redis.sock?db=2")
    link.call("SET", "where", "two")
    assert link.call("GET", "where") == b"two"
    link.close()
    serving.join(20)
    listening.close()


def test_only_two_methods_of_redis_py_are_overridden() -> None:
    """The abstract one, which its subclasses have to have, and one that only makes a message clearer: in a release that
    does not call it all else goes on.
    """
    assert AbstractConnection._connect.__isabstractmethod__
    assert callable(SSLConnection._wrap_socket_with_ssl)
    hidden = {
        f"{path.relative_to(RELAY)}: {node.attr}"
        for path in (RELAY / "redis").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }
    assert hidden == {"redis/endpoint.py: _connect", "redis/endpoint.py: _wrap_socket_with_ssl"}
