"""A parse that takes too long is given up where it is, and nowhere else is anything raised."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import gevent
import pytest

from relay.intake import parse_clock
from relay.intake.parse_clock import ParseClock, ParseOverrun
from relay.mail import Limits, Message

MESSAGE = Message("a@b.example", ("a@b.example",))


@pytest.fixture
def clock() -> Iterator[ParseClock]:
    clock = ParseClock()
    clock.start()
    yield clock
    clock.stop()


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def given_up(clock: ParseClock, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> float | None:
    """The CPU time after which that work was given up in place of a parse; None: it was not."""

    def parse(_raw: bytes, _limits: Limits, _reverse_path: str) -> Message:
        work()
        return MESSAGE

    monkeypatch.setattr(parse_clock, "parse", parse)
    began = time.process_time()
    try:
        assert clock.parse(b"", Limits()) is MESSAGE
    except ParseOverrun:
        return time.process_time() - began
    return None


def swallow() -> None:
    for _ in range(2):
        with contextlib.suppress(BaseException):  # as the bare `except:` of libraries
            burn(60)
    burn(60)


class Stubborn:
    """What an exception in its destructor does not stop."""

    def __del__(self) -> None:
        burn(0.7)


def destroy() -> None:
    stubborn = Stubborn()
    del stubborn
    burn(60)


@pytest.mark.parametrize(
    ("work", "most"),
    [
        (lambda: burn(60), 0.5),
        # The engine of expressions looks at signals by itself.
        (lambda: re.match(r"(?:a|a)*b", "a" * 40), 0.5),
        (swallow, 0.8),
        (destroy, 1.5),
    ],
    ids=["steps", "expression", "swallowed", "destructor"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_is_given_up(
    clock: ParseClock, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], most: float
) -> None:
    """CPU time, so that a busy machine changes nothing."""
    seconds = given_up(clock, monkeypatch, work)
    assert seconds is not None
    assert parse_clock.PARSE_SECONDS - 0.06 < seconds < most


def test_what_takes_less_is_not_given_up(clock: ParseClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(given_up(clock, monkeypatch, lambda: burn(0.1)) is None for _ in range(8))


def test_nothing_is_raised_after_a_parse_or_beside_one(clock: ParseClock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_up(clock, monkeypatch, lambda: burn(60)) is not None
    burn(0.6)
    gevent.spawn(burn, 0.6).join()

    def switch() -> None:
        # Parsing never does; if it did, the other greenlet must not pay.
        gevent.spawn(burn, 0.6).get()

    assert given_up(clock, monkeypatch, switch) is None


def test_a_refused_message_is_none_of_its_business(clock: ParseClock) -> None:
    with pytest.raises(Exception, match="no_from"):
        clock.parse(b"Subject: x\r\n\r\n", Limits())
    burn(0.6)
