"""What is decided against a client, without a protocol: the module of the protocol has the reply."""

from __future__ import annotations

from enum import Enum, auto


class LoginFailure(Enum):
    """Why a password opens nothing."""

    #: No API key is it.
    WRONG_KEY = auto()
    #: Whether it is one can't be found out now.
    UNAVAILABLE = auto()
    #: Too many were wrong from where the client is; this one may be good.
    TOO_MANY_FAILURES = auto()


class MessageLimit(Enum):
    """Which limit keeps a message from being sent now."""

    #: Messages a minute of its API key.
    KEY = auto()
    #: Messages a minute from where the client is.
    ORIGIN = auto()
