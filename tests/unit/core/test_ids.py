"""Ids of emails are random UUIDs, as any other program reads them."""

from __future__ import annotations

import uuid

from relay.core.ids import new_email_id


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
