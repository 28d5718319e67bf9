"""Values compare and hash by their fields, and have no others."""

from __future__ import annotations

import pytest

from relay.core.frozen import frozen, new_tuple
from relay.core.records import ApiKey


@frozen
class Point:
    x: int
    y: int = 0


def test_values_are_equal_by_their_fields() -> None:
    assert Point(1) == Point(1, 0) != Point(1, 1)
    assert len({Point(1), Point(1, 0), Point(0, 1)}) == 2
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_there_are_no_other_fields() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 5  # type: ignore[attr-defined]


def test_values_of_different_kinds_are_never_equal() -> None:
    assert Point(1, 2) != (1, 2)
    assert ApiKey("a", "b", "c", None) != ("a", "b", "c", None)


def test_a_tuple_is_made_of_its_fields() -> None:
    assert new_tuple(tuple, (1, 2)) == (1, 2)
