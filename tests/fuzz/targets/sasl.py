"""PLAIN and LOGIN: Base64 is strict, and what a client sent comes out octet by octet."""

from __future__ import annotations

import binascii
from base64 import b64encode
from collections.abc import Iterator

from relay.smtp.sasl import MECHANISMS, Challenge, Credentials, Failure, Outcome

TOKENS = (b"*", b"=", b"==", b"AAAA", b"AA==", b"AGFueQBnb29k", b"AGEAYg==", b"Z29vZA==", b"\n")
MAX_OCTETS = 128
_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


def seeds() -> Iterator[bytes]:
    """Inputs to begin with."""
    for mechanism in (b"P", b"L"):
        for lines in (
            b"\nAGFueQBnb29k",
            b"AGFueQBnb29k",
            b"=\n=\n*",
            b"\nYW55\nZ29vZA==",
            b"YW55\nZ29v\nZA==",
            b"AAA=\nAB==",
            b"\n//79\n/w==",
            b"\nA",
            b"\nYW5=eQ==",
            b"YW55====",
            b"Y W55",
        ):
            yield mechanism + lines


def check(octets: bytes) -> None:
    """Raises AssertionError where an exchange comes to something else than the lines say."""
    mechanism = "LOGIN" if octets[:1] == b"L" else "PLAIN"
    initial, *lines = octets[1:].split(b"\n")
    exchange = MECHANISMS[mechanism]()
    outcome = exchange.begin(initial or None)
    responses = [_decoded(initial)] if initial else []
    _check(mechanism, outcome, responses)
    for line in lines:
        if not isinstance(outcome, Challenge):
            break
        outcome = exchange.respond(line)
        responses.append(_decoded(line))
        _check(mechanism, outcome, responses)


def _check(mechanism: str, outcome: Outcome, responses: list[bytes | Failure]) -> None:
    """`responses`: what all lines so far stand for."""
    if responses and isinstance(responses[-1], Failure):
        assert outcome is responses[-1]
        return
    texts = [response for response in responses if isinstance(response, bytes)]
    if mechanism == "LOGIN":
        if len(texts) == 2:
            assert _octets(outcome) == texts
        else:
            asked = b"Password:" if texts else b"Username:"
            assert outcome == Challenge(b64encode(asked).decode())
    elif not texts:
        assert outcome == Challenge("")
    elif texts[0].count(b"\0") == 2:
        assert _octets(outcome) == texts[0].split(b"\0")[1:]
    else:
        assert outcome is Failure.MALFORMED


def _octets(outcome: Outcome) -> list[bytes]:
    assert isinstance(outcome, Credentials), outcome
    return [text.encode("utf-8", "surrogateescape") for text in (outcome.username, outcome.password)]


def _decoded(line: bytes) -> bytes | Failure:
    """Base64, group by group."""
    if line in (b"*", b"="):
        return Failure.CANCELLED if line == b"*" else b""
    padding = len(line) - len(line.rstrip(b"="))
    if len(line) % 4 or padding > 2 or not set(line[: len(line) - padding]) <= _ALPHABET:
        return Failure.MALFORMED
    return binascii.a2b_base64(line)
