"""A server is tried where its program, its user and root's rights are there; else what is missing is said."""

from __future__ import annotations

import os

import pytest

from tests.clients.machine import lacking


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert lacking("Shell", "sh", "root") == ""
    assert lacking("Shell", "no-such-program", "root") == "Shell is not installed (no-such-program is not in PATH)"
    assert lacking("Shell", "sh", "no-such-user") == "there is no user no-such-user"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert lacking("Shell", "sh", "root") == "Shell needs root"
