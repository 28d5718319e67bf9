"""Who is trusted to speak for others, and how long that may take."""

from __future__ import annotations

import socket
import time

import gevent
import gevent.socket
import pytest

from config.environment import WrongSettings, load
from relay.server.trusted_proxies import Proxies
from relay.smtp.proxy_protocol import NotProxied


@pytest.mark.parametrize(
    ("networks", "peer", "trusted"),
    [
        (None, "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("10.0.0.0/8,192.0.2.0/24", "192.0.2.200", True),
        (" 10.0.0.0/8 , 2001:db8::/32 ", "2001:db8:1::1", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "2001:db8::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("0.0.0.0/0", "::1", False),
    ],
)
def test_trust(networks: str | None, peer: str, trusted: bool) -> None:
    assert Proxies(networks).trust(peer) is trusted


@pytest.mark.parametrize("networks", ["10.0.0.0/8", "10.0.0.1, ::1", "2001:db8::/32,10.1.2.3"])
def test_networks_that_are_some(monkeypatch: pytest.MonkeyPatch, networks: str) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://localhost/x")
    monkeypatch.setenv("SMTP_RELAY_PROXY_PROTOCOL", networks)
    assert load().proxy_protocol == networks


@pytest.mark.parametrize(
    "networks", ["true", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/8,", "10.0.0.0/8;::1", "proxy.example"]
)
def test_networks_that_are_none(monkeypatch: pytest.MonkeyPatch, networks: str) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://localhost/x")
    monkeypatch.setenv("SMTP_RELAY_PROXY_PROTOCOL", networks)
    with pytest.raises(WrongSettings) as refused:
        load()
    said = "should be networks like 10.0.0.0/8, 2001:db8::/32, with commas between them"
    if networks == "10.0.0.1/8":
        said = "host bits are set; did you mean 10.0.0.0/8?"
    assert str(refused.value) == f"SMTP_RELAY_PROXY_PROTOCOL is {networks!r}: {said}"


def test_the_time_for_a_header_is_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Proxies, "header_seconds", 0.3)
    ours, theirs = gevent.socket.socketpair()

    def dribble() -> None:
        for octet in b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 2587":
            theirs.sendall(bytes([octet]))
            gevent.sleep(0.05)

    with ours, theirs:
        dribbling = gevent.spawn(dribble)
        began = time.monotonic()
        with pytest.raises(NotProxied, match="too late"):
            Proxies("10.0.0.0/8").client_of(ours)
        assert time.monotonic() - began < 1.5  # the whole line would take two seconds
        dribbling.kill()


def test_a_proxy_that_resets_the_connection() -> None:
    ours, theirs = gevent.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        theirs.close()
        with pytest.raises(NotProxied):
            Proxies("10.0.0.0/8").client_of(ours)
