"""What the three entries of a key mean: whatever was written there, only what Postgres has confirmed opens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.api_keys import NO_DOMAIN, KeyRecord
from relay.core.records import ApiKey
from relay.redis.key_entries import KEY_SECONDS, NOTHING, cached_key, key_commands, key_names

SHARED = {"apiKeyId": "id", "permission": "full_access", "domain": "example.com", "userId": "user"}
CHECKED = {"column": "example.com", "name": "example.com"}
KEY = ApiKey("id", "user", "full_access", "example.com")
DOMAIN_ID = "00000000-0000-4000-8000-000000000000"


def meaning(shared: object, checked: object, unknown: bytes | None = None) -> Any:
    return cached_key(
        (
            shared if shared is None or isinstance(shared, bytes) else orjson.dumps(shared),
            checked if checked is None or isinstance(checked, bytes) else orjson.dumps(checked),
            unknown,
        )
    )


def test_a_key_that_both_entries_agree_on() -> None:
    found = meaning(SHARED, CHECKED)
    assert (found.key, found.unknown) == (KEY, False)
    # A key that was made a moment ago: the mark of the time before has no say.
    assert meaning(SHARED, CHECKED, b"1").key == KEY


@pytest.mark.parametrize(
    ("column", "name", "domain"),
    [(None, None, None), (DOMAIN_ID, "example.com", "example.com"), (DOMAIN_ID, None, NO_DOMAIN)],
)
def test_the_name_of_the_domain_is_what_postgres_said(column: str | None, name: str | None, domain: str | None) -> None:
    assert meaning(SHARED | {"domain": column}, {"column": column, "name": name}).key == ApiKey(
        "id", "user", "full_access", domain
    )


@pytest.mark.parametrize(
    ("shared", "checked"),
    [
        (SHARED, None),
        (SHARED, {}),
        (SHARED, {"name": "example.com"}),
        (SHARED, CHECKED | {"column": None}),
        (SHARED, CHECKED | {"column": "other.example"}),
        (SHARED, CHECKED | {"name": 5}),
        (SHARED | {"domain": None}, CHECKED),
        (SHARED | {"domain": ["example.com"]}, CHECKED | {"column": ["example.com"]}),
        (SHARED | {"userId": ""}, CHECKED),
        (SHARED | {"userId": None}, CHECKED),
        (SHARED | {"apiKeyId": 5}, CHECKED),
        ({name: value for name, value in SHARED.items() if name != "permission"}, CHECKED),
        (b"", CHECKED),
        (b"{", CHECKED),
        (b"[]", CHECKED),
        (SHARED, b"null"),
        (SHARED, b"{"),
    ],
)
def test_what_is_not_confirmed_or_not_understood_is_as_good_as_nothing(shared: object, checked: object) -> None:
    assert meaning(shared, checked) == NOTHING


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(), lambda inner: st.lists(inner, max_size=2), max_leaves=3
)


def documents(names: Iterable[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(list(names)), json_values)


@given(documents(SHARED), documents(CHECKED))
def test_no_entry_raises_or_opens_without_a_user(shared: dict[str, Any], checked: dict[str, Any]) -> None:
    found = meaning(shared, checked)
    assert found.key is None or (found.key.user_id and found.key.user_id == shared["userId"])
    if found.key is not None and shared.get("domain"):
        assert found.key.domain is not None, "a restriction is never lost"


def test_a_mark_alone_says_that_there_is_no_such_key() -> None:
    assert meaning(None, CHECKED, b"1").unknown
    assert meaning(None, CHECKED) == NOTHING


def test_what_is_written_is_what_is_read_and_lasts_a_minute() -> None:
    written = {command[1]: command[2] for command in key_commands("hash", KeyRecord(KEY, "example.com"))}
    assert {command[3:] for command in key_commands("hash", KeyRecord(KEY, None))} == {("EX", KEY_SECONDS)}
    assert KEY_SECONDS <= 60
    shared, domain, unknown = key_names("hash")
    assert len({shared, domain, unknown}) == 3
    assert cached_key((written[shared], written[domain], None)).key == KEY  # type: ignore[arg-type]
