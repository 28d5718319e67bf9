"""The Date of a mail that leaves is as the standard library writes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.compose import _date

#: psycopg2 gives moments with the offset of its session, which has seconds for dates before there were zones.
OFFSETS = st.integers(-23 * 3600, 23 * 3600).map(lambda seconds: timezone(timedelta(seconds=seconds)))


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(0)), timezone(timedelta(0), "GMT")]) | OFFSETS))
def test_any_moment_is_written_as_the_standard_library_does(moment: datetime) -> None:
    expected = format_datetime(moment)
    assert _date(moment) == expected
