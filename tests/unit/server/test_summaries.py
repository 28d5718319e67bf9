"""What an address that has not logged in can make the log grow by."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.server import summaries
from relay.server.summaries import MOST_KINDS, Summaries


class Lines(list[tuple[str, dict[str, Any]]]):
    def write(self, event: str, **fields: Any) -> None:
        self.append((event, fields))

    def counted(self) -> int:
        """How many lines these stand for."""
        return sum(fields.get("more", 1) for _, fields in self)


def test_the_first_is_written_at_once_and_the_rest_is_counted() -> None:
    lines, kept = Lines(), Summaries()
    for number in range(1000):
        kept.write(lines.write, "client_turned_away", b"here", once={"connection": number}, reason="full")
    assert lines == [("client_turned_away", {"connection": 0, "reason": "full"})]
    kept.tell()
    assert lines[1:] == [("client_turned_away", {"more": 999, "reason": "full"})]


def test_who_comes_alone_has_a_line_alone() -> None:
    lines, kept = Lines(), Summaries()
    for _ in range(3):
        kept.write(lines.write, "client_turned_away", b"here", reason="full")
        kept.tell()
    assert lines == [("client_turned_away", {"reason": "full"})] * 3


def test_the_second_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "WINDOW_SECONDS", 0.02)
    lines, kept = Lines(), Summaries()
    for _ in range(5):
        kept.write(lines.write, "client_turned_away", b"here")
    while len(lines) < 2:
        gevent.sleep(0.01)
    kept.write(lines.write, "client_turned_away", b"here")
    assert [fields.get("more") for _, fields in lines] == [None, 4, None]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3 * MOST_KINDS), st.sampled_from("xyz")), max_size=400))
def test_none_is_missed_and_there_are_never_many(noted: list[tuple[str, int, str]]) -> None:
    """Whatever comes, from however many addresses."""
    lines, kept = Lines(), Summaries()
    for event, address, reason in noted:
        kept.write(lines.write, event, b"%d" % address, reason=reason)
    assert len(lines) <= MOST_KINDS
    kept.tell()
    assert lines.counted() == len(noted)
    assert len(lines) <= 2 * MOST_KINDS + 6
    assert not [fields for _, fields in lines if {"origin", "address", "client"} & set(fields)]


@given(st.lists(st.tuples(st.integers(0, 2 * MOST_KINDS), st.sampled_from(["1", "2", None])), max_size=200))
def test_a_count_names_a_client_only_where_all_are_of_that_client(noted: list[tuple[int, str | None]]) -> None:
    """An origin may have several addresses, and what comes from very many origins is counted together."""
    lines, kept = Lines(), Summaries()
    for origin, part in noted:
        client = None if part is None else f"{origin}:{part}"
        kept.write(lines.write, "client_turned_away", b"%d" % origin, client=client)
    kept.tell()
    known = {f"{origin}:{part}" for origin, part in noted}
    for _, fields in lines:
        client = fields.get("client")
        assert client is None or client in known
        if client is not None and "more" in fields:
            of_origin = [part for origin, part in noted if f"{origin}:" == client.partition(":")[0] + ":"]
            assert {f"{client.partition(':')[0]}:{part}" for part in of_origin} == {client}
            assert fields["more"] == len(of_origin) - 1
