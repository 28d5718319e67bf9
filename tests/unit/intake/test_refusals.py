"""Each fault of a message has a different reply, for good, which says nothing that the client did not."""

from __future__ import annotations

import pytest

from relay.core.api_keys import NO_DOMAIN
from relay.core.records import ApiKey
from relay.intake.refusals import refusal, wrong_domain
from relay.mail import Fault, Unusable


@pytest.mark.parametrize("fault", list(Fault))
def test_each_fault_has_a_reply_for_good(fault: Fault) -> None:
    reply = refusal(Unusable(fault, "detail"))
    assert 500 <= reply.code < 600
    assert reply.enhanced.startswith("5.")


def test_each_fault_has_a_separate_reply() -> None:
    said = [refusal(Unusable(fault, "detail")).encode() for fault in Fault]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("domain", ["example.com", NO_DOMAIN])
def test_the_reply_names_the_domain_of_a_restricted_key(domain: str) -> None:
    reply = wrong_domain(ApiKey("id", "user", "full_access", domain))
    assert reply.code == 550
    assert b"user" not in reply.encode()
