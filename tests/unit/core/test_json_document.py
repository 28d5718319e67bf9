"""JSON of others: what orjson refuses and others write is read, and nothing but ValueError is raised."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.json_document import loads, without_nul


@pytest.mark.parametrize("text", ["1e400", "9" * 5000, '"\\ud83d"', "[" * 500 + "]" * 500, "{}", "null"])
@pytest.mark.parametrize("encoded", [False, True])
def test_what_others_write(text: str, encoded: bool) -> None:
    try:
        wanted = json.loads(text)
    except ValueError:  # Python bounds the digits of a whole number
        with pytest.raises(ValueError, match=r"digits"):
            loads(text)
        return
    assert loads(text.encode() if encoded else text) == wanted


@pytest.mark.parametrize("text", ["", "[", b"\xff", "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000, "nul"])
def test_what_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        loads(text)


@given(st.binary(max_size=40) | st.text(alphabet='[]{}":,0e1+-\\u d8', max_size=40))
def test_nothing_else_is_raised(text: bytes | str) -> None:
    try:
        loads(text)
    except ValueError:
        return


@given(st.lists(st.sampled_from(("\\", "\0", "u0000", "a", '"')), max_size=8).map("".join))
def test_a_document_without_nul_says_the_same_but_for_those(text: str) -> None:
    """A backslash before `u0000` may itself be escaped."""
    assert loads(without_nul(orjson.dumps({text: [text]}))) == {text.replace("\0", ""): [text.replace("\0", "")]}
