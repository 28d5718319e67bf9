"""Enough file descriptors for the connections that are allowed, or a line that says how many there may be."""

from __future__ import annotations

import resource

import pytest

from relay.server.descriptors import OTHERS, descriptor_shortage, raise_limit


class Limits:
    """The limits of a process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, *, most: int | None = None) -> None:
        self.limits = soft, hard
        self._most = most
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.limits)
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _: int, limits: tuple[int, int]) -> None:
        if self._most is not None and not 0 <= limits[0] <= self._most:
            raise ValueError("current limit exceeds maximum limit")
        self.limits = limits


def test_the_limit_is_raised_as_far_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 1024, 4096)
    assert raise_limit() == 4096


def test_where_the_hard_limit_can_not_be_set_the_present_one_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 1024, resource.RLIM_INFINITY, most=1024)
    assert raise_limit() == 1024


@pytest.mark.parametrize("connections", [4096 - OTHERS, 1])
def test_enough_is_enough(monkeypatch: pytest.MonkeyPatch, connections: int) -> None:
    Limits(monkeypatch, 1024, 4096)
    assert descriptor_shortage(connections) is None


def test_no_limit_is_enough_for_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert descriptor_shortage(10**9) is None


def test_too_few_are_said_with_the_number_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Limits(monkeypatch, 1024, 4096)
    said = descriptor_shortage(4096 - OTHERS + 1)
    assert said is not None
    assert f"at most {4096 - OTHERS}" in said
    Limits(monkeypatch, 64, 64)
    assert "at most 1," in (descriptor_shortage(5) or "")
