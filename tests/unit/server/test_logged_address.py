"""The client's address in the log: in which lines, and in which form."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.logging import WITHHELD, withhold
from relay.server.logged_address import LoggedAddress


@pytest.mark.parametrize(
    ("which", "always", "of_failure"),
    [
        ("failures", {}, "192.0.2.1"),
        ("all", {"client": "192.0.2.1"}, "192.0.2.1"),
        ("none", {}, None),
    ],
)
def test_the_setting_says_which_lines_have_it(which: Any, always: dict[str, str], of_failure: str | None) -> None:
    address = LoggedAddress("192.0.2.1", which)
    assert address.always == always
    assert address.of_failure() == of_failure
    assert address.fields_of_failure() == ({} if of_failure is None else {"client": of_failure})


@pytest.mark.parametrize("which", ["failures", "all", "none"])
def test_an_unknown_client_has_none(which: Any) -> None:
    address = LoggedAddress(None, which)
    assert address.always == address.fields_of_failure() == {}


@pytest.mark.parametrize(
    ("given_as", "written"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:0:1", "::ffff:0:1"),
    ],
)
def test_the_form_is_one_that_firewalls_know(given_as: str, written: str) -> None:
    assert LoggedAddress(given_as, "failures").of_failure() == written


@given(st.ip_addresses(), st.sampled_from(["", "by ", "("]), st.sampled_from(["", ":25", "]:25", ", later", ")"]))
def test_the_log_has_addresses_in_that_field_alone(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, before: str, behind: str
) -> None:
    if address.version == 6 and behind == ":25":
        behind = "]:25"
    line = withhold(None, "warning", {"event": "x", "client": str(address), "reason": f"{before}{address}{behind}"})
    assert line == {"event": "x", "client": str(address), "reason": WITHHELD}


@pytest.mark.parametrize(
    "value",
    ["someone", "192.0.2.1 ", "192.0.2.1\n", "192.0.2", "a@b.example", "fe80::1%eth0\nx", "", 5.5, ["192.0.2.1"]],
)
def test_that_field_has_addresses_alone(value: object) -> None:
    assert withhold(None, "warning", {"event": "x", "client": value})["client"] in (WITHHELD, 5.5)


@pytest.mark.parametrize(
    "value",
    ["12:37:51.123Z", "2026-11-27T12:37:51", "5.7.8", "1f2:3", "relay/smtp/session.py:12 run", "4.3.2", "::", "a::b"],
)
def test_other_values_stay(value: str) -> None:
    shown = withhold(None, "warning", {"event": "x", "reason": value})["reason"]
    assert shown == (WITHHELD if "::" in value else value)
