"""Where events go while they can't be written: none is lost within the bounds, and none is in the way of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import gevent
import pytest
from gevent.event import Event

from relay.core.errors import PostgresUnavailable
from relay.postgres.database import Rejected
from relay.redis.kept_events import KeptEvents
from relay.redis.link import RedisLink
from relay.web import event_writer
from relay.web.event_writer import EventWriter, Fate

PATIENCE = 30.0


class Postgres:
    """Takes what it is given, but as the test says. The real one is in `test_web_process.py`."""

    def __init__(self) -> None:
        self.away = False
        self.written: list[bytes] = []
        self.poison: dict[bytes, Exception] = {}
        self.statements = 0
        self.answers = Event()
        self.answers.set()

    def write(self, events: Sequence[bytes]) -> list[bool]:
        self.statements += 1
        self.answers.wait()
        if self.away:
            raise PostgresUnavailable
        for event in events:
            if event in self.poison:
                raise self.poison[event]
        self.written += events
        return [True] * len(events)


@pytest.fixture
def link(redis_url: str) -> Iterator[RedisLink]:
    link = RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=1.0)
    yield link
    link.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_writer, "_PAUSE", 0.05)
    monkeypatch.setattr(event_writer, "_LOOK_SECONDS", 0.05)


Made = tuple[EventWriter[bool], Postgres, KeptEvents]


@pytest.fixture
def make(link: RedisLink) -> Iterator[Callable[..., Made]]:
    writers = []

    def made(most: int = 100, to: RedisLink | None = None) -> Made:
        postgres, kept = Postgres(), KeptEvents(to or link, b"smtp-relay:web:test", most)
        writer = EventWriter("test", postgres.write, kept)
        writer.start()
        writers.append(writer)
        return writer, postgres, kept

    yield made
    for writer in writers:
        writer.close(0.1)


def until(done: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE):
        while not done():
            gevent.sleep(0.01)


def put(writer: EventWriter[bool], *events: bytes) -> list[bool | Fate]:
    pending = [writer.put(event) for event in events]
    with gevent.Timeout(PATIENCE):
        return [each.get() for each in pending]


def test_what_waits_is_written_in_order(make: Callable[..., Made]) -> None:
    writer, postgres, _ = make()
    events = [b"%d" % number for number in range(1000)]
    assert put(writer, *events) == [True] * 1000
    assert postgres.written == events


def test_of_two_hundred_events_one_that_is_refused_is_found_by_few_statements(make: Callable[..., Made]) -> None:
    writer, postgres, _ = make()
    events = [b"event %d" % number for number in range(200)]
    postgres.poison[events[77]] = Rejected("22P02")
    assert put(writer, *events) == [Fate.UNSTORABLE if event is events[77] else True for event in events]
    assert postgres.written == events[:77] + events[78:]
    assert postgres.statements <= 20


def test_an_event_that_is_refused_delays_no_other(make: Callable[..., Made]) -> None:
    writer, postgres, kept = make()
    postgres.poison = {b"bad": Rejected("22P02"), b"worse": RuntimeError("x")}
    assert put(writer, b"a", b"bad", b"b", b"worse", b"c") == [True, Fate.UNSTORABLE, True, Fate.UNSTORABLE, True]
    assert postgres.written == [b"a", b"b", b"c"]
    assert kept.keep([b"d", b"bad", b"worse", b"e"])
    until(lambda: len(kept) == 0)
    assert postgres.written == [b"a", b"b", b"c", b"d", b"e"]


def test_a_right_that_is_missing_may_be_given(make: Callable[..., Made]) -> None:
    """What is not the event's fault is kept until it is mended."""
    writer, postgres, kept = make()
    postgres.poison = {b"a": Rejected("42501")}
    assert put(writer, b"a") == [Fate.KEPT]
    postgres.poison = {}
    until(lambda: len(kept) == 0)
    assert postgres.written == [b"a"]


def test_redis_has_room_for_so_many_and_the_rest_waits_in_memory(make: Callable[..., Made]) -> None:
    writer, postgres, kept = make(most=3)
    postgres.away = True
    assert put(writer, b"1") == put(writer, b"2") == put(writer, b"3") == [Fate.KEPT]
    waiting = [writer.put(b"%d" % number) for number in range(4, 9)]
    gevent.sleep(0.3)
    assert not any(each.settled for each in waiting)
    assert len(kept) == 3
    postgres.away = False
    with gevent.Timeout(PATIENCE):
        for each in waiting:
            each.get()
    until(lambda: len(kept) == 0)
    assert sorted(postgres.written) == [b"%d" % number for number in range(1, 9)]


def test_memory_is_bounded_and_what_is_beyond_is_said(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_writer, "MOST_WAITING", 5)
    writer, postgres, _ = make(to=RedisLink(None, verify_tls=True, timeout=0.1, pause=1.0))
    postgres.away = True
    pending = [writer.put(b"%d" % number) for number in range(20)]
    gevent.sleep(0.3)
    settled = [each for each in pending if each.settled]
    assert len(settled) >= 20 - 2 * 5
    assert {each.get() for each in settled} == {Fate.LOST}
    postgres.away = False
    with gevent.Timeout(PATIENCE):
        kept = [each.get() for each in pending if each not in settled]
    assert kept == [True] * len(kept)
    assert len(postgres.written) == len(kept) >= 5


def test_the_end_keeps_what_is_not_written(make: Callable[..., Made]) -> None:
    writer, postgres, kept = make(most=2)
    postgres.away = True
    put(writer, b"1", b"2")
    pending = [writer.put(b"3"), writer.put(b"4")]
    kept.remove([b"1", b"2"])
    writer.close(0.2)
    with gevent.Timeout(PATIENCE):
        assert [each.get() for each in pending] == [Fate.KEPT, Fate.KEPT]
    assert put(writer, b"5") == [Fate.LOST]
    assert sorted(kept.first(10)) == [b"3", b"4"]


def test_the_end_keeps_what_is_being_written(make: Callable[..., Made]) -> None:
    writer, postgres, kept = make()
    postgres.answers.clear()
    first = writer.put(b"1")
    until(lambda: postgres.statements == 1)
    second = writer.put(b"2")
    writer.close(0.1)
    with gevent.Timeout(PATIENCE):
        assert [first.get(), second.get()] == [Fate.KEPT, Fate.KEPT]
    assert sorted(kept.first(10)) == [b"1", b"2"]


def test_an_unforeseen_error_loses_no_event(make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    writer, postgres, kept = make()
    postgres.away = True
    keep = kept.keep

    def bug(_: Sequence[bytes]) -> bool:
        postgres.away = False
        monkeypatch.setattr(kept, "keep", keep)
        raise ZeroDivisionError

    monkeypatch.setattr(kept, "keep", bug)
    assert put(writer, b"1", b"2", b"3") == [True] * 3
    assert postgres.written == [b"1", b"2", b"3"]


def test_what_two_processes_have_written_takes_none_along_that_is_not(link: RedisLink) -> None:
    one, two = (KeptEvents(link, b"smtp-relay:web:test", 100) for _ in range(2))
    assert one.keep([b"a", b"b", b"c", b"d"])
    first = one.first(2)
    assert first == two.first(2) == [b"a", b"b"]
    two.remove(first)
    one.remove(first)
    assert one.first(10) == [b"c", b"d"]


def test_what_is_larger_than_a_statement_is_written_by_itself(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_writer, "_MOST_OCTETS", 10)
    writer, postgres, _ = make()
    events = [b"a", b"b" * 11, b"c", b"d" * 9, b"e" * 10, b"f" * 100, b"g"]
    assert put(writer, *events) == [True] * len(events)
    assert postgres.written == events
    # a, b, c and d, e, f, g.
    assert postgres.statements == 6
