"""Signing secrets as OpenSend stores them: values that Node's crypto made, and whatever else may stand there."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.webhook_secrets import UnreadableSecretError, WebhookSecrets, key_of
from tests.support.webhook_rows import MATERIAL, encrypted

KEY = bytes(range(32))


@pytest.mark.parametrize(
    "material",
    [
        KEY.hex(),
        KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        base64.b64encode(KEY).decode().rstrip("="),
        base64.urlsafe_b64encode(KEY).decode(),
    ],
)
def test_a_key_that_is_32_octets_stands_for_itself(material: str) -> None:
    assert key_of(material) == KEY


def test_any_other_key_is_stretched() -> None:
    """The value is that of scrypt (RFC 7914) with N 16384, r 8, p 1 and OpenSend's salt."""
    assert key_of("correct horse battery staple").hex() == (
        "e0019b300ccd4907725a981d207be5662c79cd7e43f925685d0feddbf2c0b445"
    )


@pytest.mark.parametrize(
    ("material", "key"),
    [
        ("ab-_" * 10 + "abc", "69bfbf69bfbf69bfbf69bfbf69bfbf69bfbf69bfbf69bfbf69bfbf69bfbf69b7"),
        ("!!" + "A" * 43 + "=", "00" * 32),
        ("A" * 44, "59d39b7cbe190465cbe27e636f368d528c79d00c818cfc66e61f1591a3ddf82c"),
        ("A" * 42, "1c296ace22c2e3fef4077c38986ad789444c44d3c74bb4eaa2ec533a58ab23dc"),
        ("abc d" * 9, "5498e3999b1a9dfd1e220accb8712601c736ad8320ac4fafddca6298a6a274a1"),
    ],
)
def test_keys_are_read_as_node_reads_them(material: str, key: str) -> None:
    """Recorded from Node: Buffer.from(material, "base64") where that has 32 octets, else scryptSync."""
    assert key_of(material).hex() == key


def test_a_secret_that_node_sealed_is_opened() -> None:
    sealed = "v1.BwcHBwcHBwcHBwcH.EXDScRLDJag69LrEXg.z9Fz6uF_hCzICPc0DI5jqg"
    assert WebhookSecrets(MATERIAL).open(sealed) == "whsec_Grüße"


@given(st.text(min_size=1))
def test_what_was_sealed_is_opened(secret: str) -> None:
    secret = secret.encode("utf-8", "replace").decode()
    assert WebhookSecrets(MATERIAL).open(encrypted(secret)) == secret


@pytest.mark.parametrize("stored", [None, "", "whsec_plain", "v2.a.b.c"])
def test_nothing_stored_is_the_empty_text(stored: str | None) -> None:
    assert WebhookSecrets(None).open(stored) == ""


def test_what_cannot_be_opened_is_said() -> None:
    sealed = encrypted("secret")
    version, iv, ciphertext, tag = sealed.split(".")
    bad = [
        "v1.",
        "v1.a.b",
        f"{version}.{iv}.{ciphertext}",
        f"{sealed}.more",
        f"{version}.{iv[:-4]}.{ciphertext}.{tag}",
        f"{version}.{iv}.{ciphertext}.{tag[:-4]}",
        f"{version}.{iv}.{ciphertext[::-1]}A.{tag}",
        f"{version}.{iv}!.{ciphertext}.{tag}",
        f"{version}.ä.{ciphertext}.{tag}",
    ]
    for stored in bad:
        with pytest.raises(UnreadableSecretError):
            WebhookSecrets(MATERIAL).open(stored)
    for other in (None, "another key of more than sixteen"):
        with pytest.raises(UnreadableSecretError):
            WebhookSecrets(other).open(sealed)
