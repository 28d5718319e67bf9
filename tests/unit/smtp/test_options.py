"""What EHLO offers: no extension without its setting, and no number that RFC 9422 does not allow."""

from __future__ import annotations

import pytest

from relay.smtp.options import Options


def options(**changed: int) -> Options:
    return Options("relay.test", **({"max_message_size": 2000, "max_recipients": 3} | changed))


def test_in_the_clear_there_is_starttls_and_no_auth() -> None:
    offered = options().extensions(in_the_clear=True)
    assert "STARTTLS" in offered
    assert not any(word.startswith("AUTH") for word in offered)
    assert "SIZE 2000" in offered


def test_under_tls_or_without_a_certificate_there_is_auth_and_no_starttls() -> None:
    offered = options().extensions(in_the_clear=False)
    assert "AUTH PLAIN LOGIN" in offered
    assert "STARTTLS" not in offered


@pytest.mark.parametrize(
    ("changed", "limits"),
    [
        ({}, "LIMITS RCPTMAX=3"),
        ({"max_messages": 7}, "LIMITS MAILMAX=7 RCPTMAX=3"),
        ({"max_messages": 999_999, "max_recipients": 1_000_000}, "LIMITS MAILMAX=999999"),
        ({"max_recipients": 1_000_000}, "LIMITS"),
    ],
)
def test_limits_have_six_digits_at_most(changed: dict[str, int], limits: str) -> None:
    assert limits in options(**changed).extensions(in_the_clear=True)
