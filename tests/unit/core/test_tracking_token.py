"""Tokens of tracked links: none is made, or changed, without the secret (contract section 7)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from relay.core import tracking_token
from relay.core.tracking_token import LONGEST_TOKEN, Tracked, TrackingTokens

SECRET = "a sécret of sixteen"
TOKENS = TrackingTokens(SECRET)
PAYLOAD: dict[str, Any] = {"v": 1, "kind": "open", "userId": "u", "emailId": "e", "domainId": "d"}
GOOD = TOKENS.make(PAYLOAD)


def made(document: bytes, *, key: str = SECRET, context: bytes = b"opensend.tracking.v1", flip: int = 0) -> str:
    """A token by the contract's words, as OpenSend makes one. `flip`: of the sealed octets, after the IV."""
    iv = os.urandom(12)
    sealed = AESGCM(hashlib.sha256(key.encode()).digest()).encrypt(iv, document, context)
    octets = bytearray(iv + sealed[-16:] + sealed[:-16])
    octets[12] ^= flip
    encoded = base64.urlsafe_b64encode(octets).rstrip(b"=")
    return signed(encoded, key)


def signed(encoded: bytes, key: str = SECRET) -> str:
    signature = hmac.digest(key.encode(), b"opensend.tracking.v1:" + encoded, "sha256")
    return f"{encoded.decode('latin-1')}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


texts = st.text(max_size=50)


@given(user=texts, email=texts, domain=texts, recipient=st.none() | texts, target=st.none() | texts)
def test_what_the_contract_makes_is_read(
    user: str, email: str, domain: str, recipient: str | None, target: str | None
) -> None:
    payload: dict[str, Any] = {"v": 1, "userId": user, "emailId": email, "domainId": domain}
    payload |= {"kind": "open"} if target is None else {"kind": "click", "targetUrl": target}
    payload |= {} if recipient is None else {"recipient": recipient}
    wanted = Tracked(
        kind=payload["kind"], user_id=user, email_id=email, domain_id=domain, recipient=recipient, target=target
    )
    assert TOKENS.verify(made(json.dumps(payload).encode())) == wanted
    assert TOKENS.verify(TOKENS.make(payload)) == wanted


def test_half_of_a_surrogate_pair_as_javascript_writes_it() -> None:
    document = json.dumps(PAYLOAD | {"kind": "click", "targetUrl": "http://x/\ud800"}).encode()
    tracked = TOKENS.verify(made(document))
    assert tracked is not None
    assert tracked.target == "http://x/\ud800"


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="latin-1"))
def test_no_other_text_is_taken_for_a_token(position: int, character: str) -> None:
    """Each octet counts, to the last bit: what Base64 would leave out or read alike too."""
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    assert (TOKENS.verify(changed) is not None) == (changed == GOOD)
    assert TOKENS.verify(GOOD[:position]) is None
    assert TOKENS.verify(GOOD[:position] + character + GOOD[position:]) is None


@given(st.text(max_size=100) | st.from_regex(r"[\w-]{0,80}\.[\w-]{43}", fullmatch=True))
def test_any_text_is_refused_without_an_error(text: str) -> None:
    assert TOKENS.verify(text) is None


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"1e999",
        b"[" * 100_000,
        b"\xff",
        *(json.dumps(PAYLOAD | change).encode() for change in (
            {"v": 2},
            {"v": "1"},
            {"kind": "other"},
            {"kind": None},
            {"kind": "click"},
            {"kind": "click", "targetUrl": 1},
            {"userId": None},
            {"emailId": ["e"]},
            {"domainId": 1},
        )),
    ],
)  # fmt: skip
def test_signed_documents_of_another_form_are_none(document: bytes) -> None:
    assert TOKENS.verify(made(document)) is None


def test_tokens_of_another_kind_are_none() -> None:
    document = json.dumps(PAYLOAD).encode()
    assert TOKENS.verify(made(document)) is not None
    assert TOKENS.verify(made(document, key="another secret of sixteen")) is None
    assert TOKENS.verify(made(document, context=b"opensend.tracking.v2")) is None
    assert TOKENS.verify(made(document, flip=1)) is None
    for encoded in (b"", b"A", b"AAAA", b"A" * 37, b"=" * 40, b"!" * 50):
        assert TOKENS.verify(signed(encoded)) is None


def test_the_length_is_bounded_on_either_side() -> None:
    assert TOKENS.verify(made(json.dumps(PAYLOAD | {"recipient": "x" * LONGEST_TOKEN}).encode())) is None


def test_nothing_is_decrypted_before_the_signature_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def compare(one: bytes, other: bytes) -> bool:
        order.append("compared")
        return one == other

    monkeypatch.setattr(tracking_token.hmac, "compare_digest", compare)
    monkeypatch.setattr(tracking_token.base64, "urlsafe_b64decode", lambda octets: order.append("decoded") or b"")
    monkeypatch.setattr(TrackingTokens, "_signature", lambda *_: b"s")
    TOKENS.verify("x.t")
    assert order == ["compared"]
    TOKENS.verify("x.s")
    assert order == ["compared", "compared", "decoded"]
