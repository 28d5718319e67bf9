"""The idempotency keys of a message's rows: one order, without end, and no row has another's."""

from __future__ import annotations

from itertools import islice

import pytest

from relay.postgres.message_parts import part_key, part_keys


def test_the_first_row_has_the_key_and_the_further_ones_are_counted_from_two() -> None:
    assert list(islice(part_keys("key", "id"), 4)) == ["key", "id#2", "id#3", "id#4"]


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_later_part_goes_on_where_the_rows_end(rows: int) -> None:
    assert list(islice(part_keys("key", "id", rows), 2)) == [part_key("id", rows + 1), part_key("id", rows + 2)]


def test_without_a_key_no_row_has_one() -> None:
    assert list(islice(part_keys(None, "id", 3), 3)) == [None, None, None]


def test_parts_that_come_one_after_the_other_share_no_key() -> None:
    given: list[str | None] = []
    for size in (1, 3, 2):
        given += islice(part_keys("key", "id", len(given)), size)
    assert len(set(given)) == len(given) == 6
