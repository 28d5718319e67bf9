"""Caches that are bounded in octets."""

from __future__ import annotations

import pytest

from relay.core.memo import Memo, memoised, octets_of


def test_results_are_kept_and_a_full_cache_begins_anew() -> None:
    calls: list[str] = []

    @memoised(entries=2, octets=100)
    def length(text: str) -> int:
        calls.append(text)
        return len(text)

    assert [length(text) for text in ("a", "bb", "a", "ccc", "ccc", "a")] == [1, 2, 1, 3, 3, 1]
    assert calls == ["a", "bb", "ccc", "a"]


def test_a_long_key_is_computed_each_time() -> None:
    memo: Memo[str, int] = Memo(len, 10, 100)
    assert memo["x" * 200] == memo["x" * 200] == 200
    assert not memo


def test_an_exception_passes_through_and_nothing_is_kept() -> None:
    calls: list[str] = []

    @memoised(entries=2, octets=100)
    def fails(text: str) -> int:
        calls.append(text)
        raise ValueError(text)

    for _ in range(2):
        with pytest.raises(ValueError, match="a"):
            fails("a")
    assert calls == ["a", "a"]


def test_octets_of_a_key_are_those_that_it_takes_in_memory() -> None:
    assert octets_of("\N{GRINNING FACE}" * 100) > 400 > octets_of("x" * 100) > 100
    assert octets_of(b"x" * 100) > 100
    assert octets_of(("x" * 100, None, ("y" * 100, 1))) == 2 * octets_of("x" * 100)
