"""Tokens of tracked links: no other text is taken for one, and where a token leads can stand in a header."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.core.tracking_token import LONGEST_TOKEN, TrackingTokens
from relay.web.location import location_of
from relay.web.tracking import document_of

_SECRET = "a secret of sixteen"
_TOKENS = TrackingTokens(_SECRET)
_KEY = hashlib.sha256(_SECRET.encode()).digest()
TOKENS = (b'"v":1', b'"kind":"click"', b'"kind":"open"', b'"userId"', b'"targetUrl":"', b"https://", b"\\u0000", b".")
MAX_OCTETS = 400
_IDS = '"userId":"u","emailId":"e","domainId":"d"'


def seeds() -> Iterator[bytes]:
    """Inputs to begin with: texts, and documents behind a zero, which are signed here."""
    yield b"\x01"
    yield b"\x01." + b"A" * 43
    yield b"\x01AAAA.AAAA"
    for document in (
        f'{{"v":1,"kind":"open",{_IDS}}}',
        f'{{"v":1,"kind":"click",{_IDS},"targetUrl":"https://x.example/\\r\\nSet-Cookie: a"}}',
        f'{{"v":1,"kind":"click",{_IDS},"targetUrl":"javascript:alert(1)","recipient":"\\ud800\\u0000"}}',
        f'{{"v":1,"kind":"click",{_IDS},"targetUrl":"http://b\\u00fccher.example/\\u00e4"}}',
        f'{{"v":2,"kind":"open",{_IDS}}}',
        '{"v":1,"kind":"open","userId":"\\u0000","emailId":"\\u0000","domainId":"\\ud800","recipient":"\\u0000"}',
        "[[[[1e999]]]]",
        "",
    ):
        yield b"\x00" + document.encode()


def check(octets: bytes) -> None:
    """Raises AssertionError where a text is taken for a token, or a target gets out of its header."""
    if octets[:1] != b"\x00":
        assert _TOKENS.verify(octets[1:].decode("latin-1")) is None
        return
    token = _made(octets[1:])
    tracked = _TOKENS.verify(token)
    for wrong in (token[:-1], f"{token}=", f"{token} ", f"={token}", token.replace(".", "..", 1), token.swapcase()):
        assert wrong == token or _TOKENS.verify(wrong) is None
    if tracked is None:
        return
    assert len(token) <= LONGEST_TOKEN
    # An odd number of backslashes before it: a NUL, which no text of Postgres has.
    assert not re.search(rb"(?<!\\)(\\\\)*\\u0000", document_of(tracked, "agent", "192.0.2.1"))
    location = None if tracked.target is None else location_of(tracked.target)
    assert location is None or (location.isascii() and location.isprintable() and " " not in location)
    assert location is None or location.lower().startswith(("http://", "https://"))


def _made(document: bytes) -> str:
    iv = bytes(12)
    sealed = AESGCM(_KEY).encrypt(iv, document, b"opensend.tracking.v1")
    encoded = base64.urlsafe_b64encode(iv + sealed[-16:] + sealed[:-16]).rstrip(b"=")
    signature = hmac.digest(_SECRET.encode(), b"opensend.tracking.v1:" + encoded, "sha256")
    return f"{encoded.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
