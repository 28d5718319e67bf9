"""The SASL mechanisms PLAIN (RFC 4616) and LOGIN: exchanges that ask on, give credentials, or fail."""

from __future__ import annotations

import base64
import re
from enum import Enum, auto
from typing import Protocol

from relay.core.frozen import frozen


@frozen
class Credentials:
    """What a client proved itself with. Only the password counts (contract section 1)."""

    username: str
    password: str


class Failure(Enum):
    """Why an exchange ended without credentials."""

    CANCELLED = auto()
    MALFORMED = auto()


@frozen
class Challenge:
    """What to ask for next: Base64, as it goes into a 334 reply."""

    text: str


Outcome = Challenge | Credentials | Failure


class Exchange(Protocol):
    """One authentication in progress."""

    def begin(self, initial_response: bytes | None) -> Outcome:
        """The client named the mechanism, with an initial response (Base64, `=` for an empty one) or without."""

    def respond(self, line: bytes) -> Outcome:
        """The client answered a challenge with a line (Base64, `*` to cancel)."""


class Plain:
    """PLAIN: authorization identity, user name and password in one response, with NUL between them."""

    def begin(self, initial_response: bytes | None) -> Outcome:
        """An empty challenge where there is no initial response."""
        return Challenge("") if initial_response is None else self.respond(initial_response)

    def respond(self, line: bytes) -> Outcome:
        """Credentials, from all three parts at once."""
        response = _decode(line)
        if isinstance(response, Failure):
            return response
        parts = response.split("\0")
        if len(parts) != 3:
            return Failure.MALFORMED
        return Credentials(username=parts[1], password=parts[2])


class LoginMechanism:
    """LOGIN: asks for the user name, then for the password. Never standardised; this is what clients do."""

    def __init__(self) -> None:
        self._username: str | None = None

    def begin(self, initial_response: bytes | None) -> Outcome:
        """An initial response is the user name."""
        return _ASK_USERNAME if initial_response is None else self.respond(initial_response)

    def respond(self, line: bytes) -> Outcome:
        """The user name first, the password next."""
        response = _decode(line)
        if isinstance(response, Failure):
            return response
        if self._username is None:
            self._username = response
            return _ASK_PASSWORD
        return Credentials(username=self._username, password=response)


MECHANISMS: dict[str, type[Plain] | type[LoginMechanism]] = {"PLAIN": Plain, "LOGIN": LoginMechanism}

#: RFC 4648 section 4, with its padding and nothing else, where the length is a multiple of four: Python's own checks
#: differ between versions.
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*+={0,2}")
_ASK_USERNAME = Challenge(base64.b64encode(b"Username:").decode("ascii"))
_ASK_PASSWORD = Challenge(base64.b64encode(b"Password:").decode("ascii"))


def _decode(line: bytes) -> str | Failure:
    if line == b"*":
        return Failure.CANCELLED
    if line == b"=":
        return ""
    if len(line) % 4 or not _BASE64.fullmatch(line):
        return Failure.MALFORMED
    # What isn't UTF-8 can't be a key of ours; kept apart from every valid text, it is refused as a wrong one.
    return base64.b64decode(line).decode("utf-8", "surrogateescape")
