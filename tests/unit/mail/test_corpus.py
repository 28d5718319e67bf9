"""Every message of the corpus becomes what was read by eye and written beside it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from relay.mail import Limits, Message, Unusable
from relay.mail.reader import parse
from tests.support import mail_corpus


@pytest.mark.parametrize("path", mail_corpus.messages(), ids=lambda path: path.stem)
def test_message_becomes_what_is_expected(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(mail_corpus.stored_form(path.read_bytes()))) == expected


def test_corpus_is_large_enough_and_every_expectation_has_its_message() -> None:
    messages = mail_corpus.messages()
    assert len(messages) >= 150
    assert {path.with_suffix(".eml") for path in mail_corpus.CORPUS.glob("*/*.json")} == set(messages)


def _both_ways(raw: bytes) -> list[Message | str]:
    results: list[Message | str] = []
    for shortcuts in (True, False):
        try:
            results.append(dataclasses.replace(parse(raw, Limits(), shortcuts=shortcuts), parser=""))
        except Unusable as unusable:
            results.append(unusable.fault.value)
    return results


@pytest.mark.parametrize("path", mail_corpus.messages(), ids=lambda path: path.stem)
def test_shortcuts_lead_to_the_same_message_as_the_long_way(path: Path) -> None:
    short, long = _both_ways(path.read_bytes())
    assert short == long


def _only_crlf(path: Path) -> bool:
    without = path.read_bytes().replace(b"\r\n", b"")
    return b"\n" not in without and b"\r" not in without


@pytest.mark.parametrize("path", list(filter(_only_crlf, mail_corpus.messages())), ids=lambda path: path.stem)
def test_line_ends_do_not_change_who_gets_what(path: Path) -> None:
    raw = path.read_bytes()
    with_crlf, with_lf = (mail_corpus.stored_form(each) for each in (raw, raw.replace(b"\r\n", b"\n")))
    for form in (with_crlf, with_lf):
        for name in ("attachments", "parser"):
            form.pop(name, None)
    assert with_crlf == with_lf


def test_flanker_and_the_fallback_are_counted_by_cause() -> None:
    counted: Counter[str] = Counter()
    for path in mail_corpus.messages():
        try:
            counted[parse(path.read_bytes(), Limits(), shortcuts=False).parser] += 1
        except Unusable:
            continue
    assert set(counted) <= {
        "flanker",
        *(f"fallback:{cause}" for cause in ("boundary", "charset", "limits", "malformed", "size", "structure")),
    }
    assert counted["flanker"] > 0.8 * counted.total()
    assert counted["fallback:boundary"] > 0
