"""What is set aside for a large message is what it takes, whatever is in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.core.records import StoredAttachment
from relay.intake import footprint
from relay.mail import Message

SIZE = 6_000_000
BY_PIECES = footprint.IN_ONE_PIECE + 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are Linux's")
@pytest.mark.parametrize("memory", ["whole", "pieces"])
def test_no_kind_of_content_takes_more_than_was_set_aside(postgres_url: str, memory: str) -> None:
    program = Path(__file__).with_name("child_memory.py")
    printed = subprocess.run(
        [sys.executable, str(program), postgres_url, str(SIZE), memory],
        check=True,
        stdout=subprocess.PIPE,
        cwd=program.parents[2],
        env={**os.environ, "PYTHONPATH": str(program.parents[2])},
        timeout=200,
    ).stdout
    measured: dict[str, list[int]] = json.loads(printed)
    assert len(measured) >= 18
    for kind, (parsing, set_aside, storing, uses) in measured.items():
        assert parsing <= set_aside, (kind, parsing, set_aside)
        assert storing <= min(uses, set_aside), (kind, storing, uses, set_aside)
        # And not much less, or fewer could be parsed at a time than there is memory for.
        gaps = 6 if memory == "whole" else 3
        assert uses <= storing + gaps * SIZE + footprint.CHILD_OCTETS, (kind, storing, uses)
    many, one = measured["a thousand recipients"], measured["base64 attachment"]
    assert many[2] < one[2] + 2 * SIZE, "memory does not depend on the number of rows"


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("a" * 1_000_000, 4_000_000),
        ("é" * 1_000_000, 7_000_000),
        ("漢" * 1_000_000, 11_000_000),
        ("\U0001f600" + "a" * 999_999, 7_000_000),
        ("\U0001f600" * 1_000_000, 16_000_000),
        ("\ud800" * 1_000_000, 11_000_000),
    ],
)
def test_a_text_counts_by_what_python_and_postgres_make_of_it(text: str, octets: int) -> None:
    message = Message("a@x", ("a@x",), text=text)
    assert footprint.after_parsing(message, BY_PIECES) - footprint.CHILD_OCTETS == pytest.approx(octets, rel=0.01)


def test_in_one_piece_of_memory_the_octets_of_the_message_count_until_the_end() -> None:
    message = Message("a@x", ("a@x",), text="a")
    assert footprint.after_parsing(message, 1_000_000) - footprint.after_parsing(message, 0) == 2_000_000


def test_attachments_count_as_they_are_stored() -> None:
    message = Message("a@x", ("a@x",), attachments=(StoredAttachment("a", "aGk=" * 250_000),) * 2)
    assert footprint.after_parsing(message, BY_PIECES) - footprint.CHILD_OCTETS == pytest.approx(8_000_000, rel=0.01)
