"""Ids of emails are random UUIDs, as any other program reads them."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from relay.core.ids import is_uuid, new_email_id


def test_ids_are_random_uuids_of_version_4() -> None:
    ids = [new_email_id() for _ in range(1000)]
    for text in ids:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, text)
    assert len(set(ids)) == 1000


def test_every_other_bit_is_left_to_chance() -> None:
    numbers = [uuid.UUID(new_email_id()).int for _ in range(1000)]
    always, ever = ~0, 0
    for number in numbers:
        always &= number
        ever |= number
    assert (always ^ ever).bit_count() == 122


@given(st.text("0123456789abcdefABCDEF-", min_size=34, max_size=38) | st.uuids().map(str) | st.from_type(object))
def test_a_uuid_is_what_reads_as_itself(text: object) -> None:
    """Postgres takes hyphens in other places too, and gives them back where they belong: as another text."""
    try:
        itself = isinstance(text, str) and str(uuid.UUID(text)) == text.lower()
    except ValueError:
        itself = False
    assert is_uuid(text) == itself


def test_hyphens_in_other_places_make_no_uuid() -> None:
    assert is_uuid("01234567-89ab-CDEF-0123-456789abcdef")
    for text in ("01234567-89abcdef-0123-4567-89abcdef", "-" * 4 + "0" * 32, "01234567-89ab-cdef-0123-456789abcde٣"):
        assert len(text) == 36
        assert not is_uuid(text)
