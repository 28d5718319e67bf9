"""How rows reach Postgres: many greenlets' messages in one statement and one commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """All rows of the message are committed."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """The user has stored a message with this idempotency key within 24 h: `first_id` is its id. Nothing was stored."""

    first_id: str


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Some recipients are suppressed: address (comparison form) → reason. Nothing was stored."""

    reasons: Mapping[str, str]


Outcome = Stored | Repeated | Suppressed
