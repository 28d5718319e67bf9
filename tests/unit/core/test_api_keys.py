"""The domain of a key: whatever the column holds, a restriction that can't be understood lets nothing through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.api_keys import NO_DOMAIN, is_domain_id, restriction
from relay.core.records import ApiKey
from relay.intake.policy import may_send_from

ID = "3F2504E0-4F89-41D3-9A0C-0305E82C3301"


@pytest.mark.parametrize(
    ("column", "found", "domain"),
    [
        (None, None, None),
        ("", None, None),
        ("example.com", None, "example.com"),
        (" Example.COM ", None, "example.com"),
        ("bücher.example", None, "xn--bcher-kva.example"),
        # The name of a domain that was found by an id counts for a column that holds an id, and for no other.
        (ID, "example.com", "example.com"),
        (ID, " Bücher.example", "xn--bcher-kva.example"),
        (ID, None, NO_DOMAIN),
        (ID, "", NO_DOMAIN),
        (ID, "a b", NO_DOMAIN),
        ("example.com", "other.example", "example.com"),
        (" ", None, NO_DOMAIN),
        ("a b.example", None, NO_DOMAIN),
        ("@example.com", None, NO_DOMAIN),
        (ID + "0", "example.com", ID.lower() + "0"),
    ],
)
def test_what_a_column_means(column: str | None, found: str | None, domain: str | None) -> None:
    assert restriction(column, found) == domain


@given(st.text(min_size=1), st.none() | st.text())
def test_no_column_but_an_empty_one_is_no_restriction(column: str, found: str | None) -> None:
    assert restriction(column, found) is not None


@pytest.mark.parametrize("address", ["a@example.com", "!@x.example", "a@x.!"])
def test_no_address_is_in_an_empty_domain(address: str) -> None:
    assert not may_send_from(ApiKey("k", "u", "full_access", NO_DOMAIN), [address])


@pytest.mark.parametrize(
    ("column", "is_id"),
    [
        (ID, True),
        (f" {ID.lower()}\n", True),
        (ID.replace("-", ""), False),
        ("{" + ID[:34] + "}", False),
        ("x" * 36, False),
        ("", False),
    ],
)
def test_what_is_the_id_of_a_domain(column: str, is_id: bool) -> None:
    assert is_domain_id(column) is is_id
