"""The form of DSN parameters (RFC 3461), which are taken when they are well-formed, and then ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.smtp.dsn import is_envelope_id, is_notify, is_original_recipient, is_return


@pytest.mark.parametrize(
    ("value", "well_formed"),
    [
        ("NEVER", True),
        ("never", True),
        ("SUCCESS,FAILURE,DELAY", True),
        ("delay", True),
        ("SUCCESS,SUCCESS", True),
        ("NEVER,SUCCESS", False),
        ("", False),
        ("SUCCESS,", False),
        ("SUCCESS, DELAY", False),
        ("SOMETIMES", False),
    ],
)
def test_notify(value: str, well_formed: bool) -> None:
    assert is_notify(value) is well_formed


@pytest.mark.parametrize(("value", "well_formed"), [("FULL", True), ("hdrs", True), ("", False), ("FULL,HDRS", False)])
def test_return(value: str, well_formed: bool) -> None:
    assert is_return(value) is well_formed


@pytest.mark.parametrize(
    ("value", "well_formed"),
    [
        ("QQ314159", True),
        ("a+2Bb", True),
        ("a+3db", True),
        ("a" * 100, True),
        ("", False),
        ("a" * 101, False),
        ("a=b", False),
        ("a+b", False),
        ("a b", False),
        ("ü", False),
    ],
)
def test_envelope_id(value: str, well_formed: bool) -> None:
    assert is_envelope_id(value) is well_formed


@pytest.mark.parametrize(
    ("value", "utf8", "well_formed"),
    [
        ("rfc822;ann@example.com", False, True),
        ("rfc822;ann+2Btag@example.com", False, True),
        ("utf-8;\u00fc@example.com", True, True),
        ("UTF-8;a=b@example.com", True, True),
        ("utf-8;\u00fc@example.com", False, False),
        ("rfc822;\u00fc@example.com", True, False),
        ("rfc822;a=b@example.com", True, False),
        ("rfc822;", False, False),
        (";ann@example.com", False, False),
        ("ann@example.com", False, False),
        ("rfc 822;ann@example.com", False, False),
        ("rfc822;" + "a" * 493, False, True),
        ("rfc822;" + "a" * 494, False, False),
    ],
)
def test_original_recipient(value: str, utf8: bool, well_formed: bool) -> None:
    assert is_original_recipient(value, utf8=utf8) is well_formed


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30))
def test_whatever_is_encoded_as_the_rfc_says_is_taken(text: str) -> None:
    encoded = "".join(f"+{ord(character):02X}" if character in "+=" else character for character in text)
    assert is_envelope_id(encoded)
    assert is_original_recipient(f"rfc822;{encoded}", utf8=False)
