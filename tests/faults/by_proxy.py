"""What the tables of faults have in common: what clients may hear, and the faults that a proxy brings about."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from tests.faults.stage import Stage
from tests.support.proxy import Proxy, Trip

Run = Callable[[Stage], contextlib.AbstractContextManager[None]]

#: What clients may hear, but for 250.
LATER: Final = b"451 4.3.0"
AUTH_LATER: Final = b"454 4.7.0"
AUTH_BAD: Final = b"535 5.7.8"

BAD: Final = frozenset((LATER,))
EITHER: Final = frozenset((LATER, b"250"))
GOOD: Final = frozenset((b"250",))
NO_AUTH: Final = frozenset((AUTH_LATER,))
ANY_AUTH: Final = frozenset((AUTH_LATER, AUTH_BAD))
AUTH: Final = frozenset((AUTH_BAD,))


def by_proxy(service: str, begin: Callable[[Proxy], None]) -> Run:
    """A fault that the proxy before a server brings about and ends."""

    @contextlib.contextmanager
    def run(stage: Stage) -> Iterator[None]:
        proxy: Proxy = getattr(stage, f"{service}_proxy")
        begin(proxy)
        try:
            yield
        finally:
            proxy.heal()

    return run


def slow(seconds: float) -> Callable[[Proxy], None]:
    """Each answer is kept back for so long (seconds)."""

    def begin(proxy: Proxy) -> None:
        proxy.delay_to_client = seconds

    return begin


def dribbling(seconds: float) -> Callable[[Proxy], None]:
    """Answers come octet by octet, each so long after the one before."""

    def begin(proxy: Proxy) -> None:
        proxy.dribble = seconds

    return begin


def deaf(proxy: Proxy) -> None:
    """Half-open: what the server says is lost."""
    proxy.drop_to_client = True


def resetting(pattern: bytes, *, deliver: bool, times: int = 10**6) -> Callable[[Proxy], None]:
    """A connection is reset when these octets come by."""

    def begin(proxy: Proxy) -> None:
        proxy.trip = Trip(pattern, deliver, times)

    return begin


def babbling(octets: bytes, seconds: float) -> Callable[[Proxy], None]:
    """Instead of an answer these octets come again and again, each time so long after the last."""

    def begin(proxy: Proxy) -> None:
        proxy.babble = octets, seconds

    return begin


def answering(octets: bytes) -> Callable[[Proxy], None]:
    """Whatever is asked, these octets are the answer."""

    def begin(proxy: Proxy) -> None:
        proxy.canned = octets

    return begin
