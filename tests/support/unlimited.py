"""A double for the limits of a client (`relay.smtp.submission.Limits`), for tests of the dialogue by itself."""

from __future__ import annotations

from collections.abc import Callable

from relay.core.outcomes import LoginFailure, MessageLimit
from relay.smtp.submission import Login


class Unlimited:
    """Refuses nothing."""

    def authenticate(self, password: str, look_up: Callable[[str], Login | LoginFailure]) -> Login | LoginFailure:
        """As `Limits` says."""
        return look_up(password)

    def admit(self, key_id: str) -> MessageLimit | None:
        """As `Limits` says."""
        return None
