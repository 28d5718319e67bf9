"""The table of limits names settings that there are, with the defaults that they have."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from config.settings import Settings

LIMITS = (Path(__file__).resolve().parents[3] / "docs" / "limits.md").read_text()
DEFAULTS = {setting.metadata["source"].variables[0]: setting.default for setting in dataclasses.fields(Settings)}
OF_LIMITS = ("_MAX_", "_PER_MINUTE", "_AUTH_", "_RATE", "_SECONDS", "_PROXY_PROTOCOL", "_BUDGET_", "_CONCURRENCY")
#: No limits on clients.
OTHERS = {"SMTP_RELAY_DEDUPE_SECONDS", "SMTP_RELAY_DRAIN_SECONDS"}


def test_every_limit_is_in_the_document() -> None:
    limits = {name for name in DEFAULTS if name.startswith("SMTP_RELAY_") and any(word in name for word in OF_LIMITS)}
    named = set(re.findall(r"`(SMTP_RELAY_\w+)`", LIMITS))
    assert named == limits - OTHERS


def test_the_defaults_are_those_of_the_settings() -> None:
    rows = re.findall(r"^\|[^|]*\| `(SMTP_RELAY_\w+)` \| ([^|]*) \|", LIMITS, re.MULTILINE)
    assert len(rows) >= 17
    for name, default in rows:
        assert re.search(rf"\b{DEFAULTS[name]:.12g}\b", default), name
