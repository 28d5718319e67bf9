"""X-Forwarded-For is believed of trusted proxies alone, and only what they have written themselves."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.web.http_clients import ForwardedFor

TRUSTED = ForwardedFor("10.0.0.0/8, 2001:db8:1::/48")


@pytest.mark.parametrize(
    ("peer", "field", "client"),
    [
        ("192.0.2.7", "203.0.113.1", "192.0.2.7"),
        ("10.1.2.3", None, "10.1.2.3"),
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "203.0.113.1", "203.0.113.1"),
        ("::ffff:10.1.2.3", "203.0.113.1", "203.0.113.1"),
        ("2001:db8:1::5", "2001:db8:2::1", "2001:db8:2::1"),
        ("10.1.2.3", "198.51.100.1, 203.0.113.1", "203.0.113.1"),
        ("10.1.2.3", "198.51.100.1, 203.0.113.1, 10.9.9.9", "203.0.113.1"),
        ("10.1.2.3", "10.8.8.8, 10.9.9.9", "10.8.8.8"),
        ("10.1.2.3", "198.51.100.1, x, 10.9.9.9", "10.9.9.9"),
        ("10.1.2.3", ",,", "10.1.2.3"),
        ("10.1.2.3", "203.0.113.1:80", "203.0.113.1"),
        ("10.1.2.3", "[2001:db8:2::1]:80", "2001:db8:2::1"),
        ("10.1.2.3", "2001:db8:2::1%eth0", "2001:db8:2::1"),
        ("10.1.2.3", "1, " * 5000 + "10.9.9.9", "10.9.9.9"),
    ],
)
def test_whose_request_it_is(peer: str, field: str | None, client: str) -> None:
    assert TRUSTED.client_of(peer, field) == client


def test_without_networks_no_proxy_is_trusted() -> None:
    assert ForwardedFor(None).client_of("10.1.2.3", "203.0.113.1") == "10.1.2.3"


@given(st.text(max_size=60))
def test_the_client_is_an_address_whatever_is_written(field: str) -> None:
    assert ipaddress.ip_address(TRUSTED.client_of("10.1.2.3", field))
