"""Binding: every address family, several ports, and what can't be had."""

from __future__ import annotations

import socket

import pytest

from config.settings import Settings
from relay.server import sockets
from scripts.services import free_port


def settings(**values: object) -> Settings:
    return Settings(database_url="postgres://nobody@nowhere/none", **values)  # type: ignore[arg-type]


def close(listeners: list[sockets.Listener]) -> None:
    for listener in listeners:
        listener.socket.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_one_address() -> None:
    port = free_port()
    listeners = sockets.bind(settings(host="127.0.0.1", port=port))
    try:
        (listener,) = listeners
        assert not listener.implicit_tls
        assert not listener.socket.getblocking()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        close(listeners)


def test_a_second_port_for_implicit_tls() -> None:
    port, tls_port = free_port(), free_port()
    listeners = sockets.bind(settings(host="127.0.0.1", port=port, tls_port=tls_port))
    try:
        assert [(each.socket.getsockname()[1], each.implicit_tls) for each in listeners] == [
            (port, False),
            (tls_port, True),
        ]
    finally:
        close(listeners)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_the_ipv6_wildcard_takes_ipv4_too(host: str) -> None:
    port = free_port()
    listeners = sockets.bind(settings(host=host, port=port))
    try:
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5):
                pass
    finally:
        close(listeners)


def test_a_name_is_all_of_its_addresses() -> None:
    port = free_port()
    listeners = sockets.bind(settings(host="localhost", port=port))
    try:
        found = {each[4][0] for each in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}
        assert {each.socket.getsockname()[0] for each in listeners} == found
    finally:
        close(listeners)


def test_when_one_port_is_taken_none_stays_bound() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        tls_port = taken.getsockname()[1]
        with pytest.raises(sockets.CannotListen) as refused:
            sockets.bind(settings(host="127.0.0.1", port=port, tls_port=tls_port))
    assert str(refused.value).startswith(f"SMTP_RELAY_TLS_PORT is {tls_port}: should be a free port")
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b", "999.1.1.1"])
def test_hosts_that_are_not_here(host: str) -> None:
    with pytest.raises(sockets.CannotListen) as refused:
        sockets.bind(settings(host=host, port=free_port()))
    assert str(refused.value).startswith(f"SMTP_RELAY_HOST is {host!r}: should be ")
