"""What fuzzing has found out keeps holding: every input that was kept is checked again, without a fuzzer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.core import address as relay_address
from relay.core import json_document
from relay.mail import filename, mailbox, reader
from relay.smtp import framing, proxy_protocol, sasl
from relay.smtp.session import Session
from relay.web import location
from tests.fuzz import catalogue
from tests.fuzz.catalogue import Target


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_every_kept_input(name: str) -> None:
    assert len(catalogue.kept(name)) >= 5
    _check_all(catalogue.load(name))


def _check_all(target: Target) -> None:
    for octets in [*catalogue.kept(target.name), *target.seeds()]:
        try:
            target.check(octets)
        except Exception as error:
            error.add_note(f"input: {octets!r}")
            raise


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_the_kept_inputs_are_few_and_short(name: str) -> None:
    kept = catalogue.kept(name)
    assert len(set(kept)) == len(kept)
    assert max(map(len, kept)) <= catalogue.load(name).max_octets
    assert sum(map(len, kept)) < 100_000


def test_inputs_survive_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_KEPT", tmp_path)
    inputs = [b"", bytes(range(256)), b"\\n \\x41\r\n\x0b\x0c\x1c\x85\xe2\x80\xa8", b" trailing "]
    catalogue.keep("any", inputs)
    assert sorted(catalogue.kept("any")) == sorted(inputs)


@pytest.mark.parametrize(
    ("name", "where", "what", "instead"),
    [
        ("framing", framing, "_HELD_BACK", 1),
        ("path", relay_address, "_DOT_ATOM", re.compile("")),
        ("sasl", sasl, "_BASE64", re.compile(rb"[A-Za-z0-9+/=]*")),
        ("proxy", proxy_protocol, "_SHORTEST_LINE", 40),
        ("parameters", filename, "_CONTROLS", re.compile("\0")),
        ("addresses", mailbox, "_PLAIN_NAME", re.compile("")),
        ("dialogue", Session, "_in_the_clear", False),
        ("message", reader, "_CONTROLS", re.compile("\0")),
        ("token", location, "_KEPT", "\r\n"),
        ("sns", json_document, "_ESCAPES", re.compile(rb"(?!)()")),
    ],
)
def test_a_bug_would_be_noticed(
    name: str, where: object, what: str, instead: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = catalogue.load(name)
    monkeypatch.setattr(where, what, instead)
    with pytest.raises((AssertionError, ValueError)):
        _check_all(target)
