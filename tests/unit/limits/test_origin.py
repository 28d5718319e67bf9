"""Whom a limit counts as one."""

from __future__ import annotations

import pytest

from config.settings import Settings
from relay.limits.client import ProcessLimits
from relay.limits.origin import Origins
from relay.redis.link import RedisLink

ORIGINS = Origins(b"secret")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff"),
        ("2001:db8:1:2::1", "2001:DB8:1:2:0:0:0:9"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
def test_one_origin(one: str, other: str) -> None:
    assert ORIGINS.of(one) == ORIGINS.of(other)


def test_different_origins() -> None:
    addresses = ["192.0.2.1", "192.0.2.2", "2001:db8:1:2::1", "2001:db8:1:3::1", "::1", "127.0.0.1", "c000:201::", ""]
    assert len({ORIGINS.of(address) for address in addresses}) == len(addresses)


def test_without_the_secret_the_address_can_not_be_found() -> None:
    assert ORIGINS.of("192.0.2.1") != Origins(b"another").of("192.0.2.1")
    assert ORIGINS.of("192.0.2.1") == Origins(b"secret").of("192.0.2.1")
    assert len(ORIGINS.of("192.0.2.1")) == 8


def test_each_installation_has_a_secret_of_its_own() -> None:
    """Origins are made with what only the processes of one installation know, never with a secret that all have."""

    def origin(database_url: str) -> bytes:
        link = RedisLink(None, verify_tls=True, timeout=0.1, pause=1.0)
        limits = ProcessLimits(Settings(database_url=database_url), link)
        return limits.origins.of("192.0.2.1")

    one, other = origin("postgres://a:one@localhost/x"), origin("postgres://a:two@localhost/x")
    assert one == origin("postgres://a:one@localhost/x")
    assert len({one, other, Origins(b"").of("192.0.2.1")}) == 3
