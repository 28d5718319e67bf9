"""One row that can't be read, or says something odd, never stops the others, wherever a table is read."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from relay.core.api_keys import NO_DOMAIN
from relay.core.records import EmailRow
from relay.operator.warming import Selection, Warming
from relay.postgres import store as store_module
from relay.postgres.group_commit import Stored, Suppressed
from relay.postgres.snapshot import Snapshot
from relay.postgres.store import Store
from relay.redis.cache import Cache

Query = Callable[..., list[dict[str, Any]]]

DOMAIN_ID = "01234567-89ab-cdef-0123-456789abcdef"
#: api_keys.domain → the domain that the key may send from; None where nothing restricts it.
COLUMNS: dict[str | None, str | None] = {
    None: None,
    "": None,
    "mail.example": "mail.example",
    f"\t{DOMAIN_ID}": "named.example",
    f"{DOMAIN_ID}\n": "named.example",
    f" \r\v\f{DOMAIN_ID.upper()}\u00a0\u2003": "named.example",
    f"\t{uuid.uuid4()}": NO_DOMAIN,
    f"{DOMAIN_ID}.example": f"{DOMAIN_ID}.example",
    f"{{{DOMAIN_ID}}}": NO_DOMAIN,
    DOMAIN_ID.replace("-", ""): DOMAIN_ID.replace("-", ""),
    DOMAIN_ID.replace("-", "") + "----": NO_DOMAIN,
    "0123456789ab-cdef-0123-4567-89abcdef": NO_DOMAIN,
    f"urn:uuid:{DOMAIN_ID}": NO_DOMAIN,
    "\t": NO_DOMAIN,
    ".": NO_DOMAIN,
    "\ud7ff\ufffe\U0010ffff": NO_DOMAIN,
    "xn--a": "xn--a",
    "a" * 255: NO_DOMAIN,
}


def insert_key(query: Query, domain: str | None, *, user_id: str = "user", name: str | None = None) -> str:
    token_hash = uuid.uuid4().hex * 2
    query(
        "INSERT INTO api_keys (id, name, token_hash, permission, created_at, user_id, domain)"
        " VALUES (gen_random_uuid(), 'k', %s, 'full_access', now(), %s, %s)",
        token_hash,
        user_id,
        domain,
    )
    return token_hash


def insert_domain(query: Query, name: str, domain_id: str = DOMAIN_ID, *, user_id: str = "user") -> None:
    query("INSERT INTO domains (id, name, status, user_id) VALUES (%s, %s, 'verified', %s)", domain_id, name, user_id)


def test_any_domain_column_is_read_and_stops_no_other_key(
    store: Store, cache: Cache, postgres_url: str, query: Query
) -> None:
    insert_domain(query, "Named.Example.")
    hashes = {insert_key(query, column): column for column in COLUMNS}
    found = store.find_api_keys(hashes)
    assert {hashes[token_hash]: record.key.domain for token_hash, record in found.items()} == COLUMNS
    for token_hash, column in hashes.items():
        record = store.find_api_key(token_hash)
        assert record is not None
        assert record.key.domain == COLUMNS[column]
    with Snapshot(postgres_url) as snapshot:
        assert dict(snapshot.api_keys(None, None)) == found
        assert Warming(snapshot, cache, Selection()).run().keys == len(COLUMNS)


def test_no_generated_domain_column_stops_another_key(store: Store, query: Query) -> None:
    source = random.Random(20261126)
    pieces = [
        DOMAIN_ID,
        str(uuid.uuid4()),
        "-",
        "\t",
        "\n",
        " ",
        "{",
        "}",
        "a.example",
        "xn--",
        "\u00a0",
        "é",
        ".",
        "@",
        "'",
        "\\",
        "%",
    ]
    columns = ["".join(source.choices(pieces, k=source.randint(1, 5)))[:255] for _ in range(300)]
    hashes = [insert_key(query, column) for column in columns]
    assert store.find_api_keys(hashes).keys() == set(hashes)


@pytest.mark.parametrize("name", ["", " ", "\t", "no domain", "\ud7ff", "a" * 255, ".", "xn--\u00fc"])
def test_a_domain_of_any_name(store: Store, query: Query, name: str) -> None:
    insert_domain(query, name)
    token_hash = insert_key(query, DOMAIN_ID)
    record = store.find_api_key(token_hash)
    assert record is not None
    assert record.key.domain == NO_DOMAIN


def test_a_key_that_raises_is_no_key_and_stops_no_other(
    store: Store, postgres_url: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: an error in reading one row is that row's alone."""
    good, bad = insert_key(query, None), insert_key(query, "raises")
    real = store_module.restriction

    def restriction(column: str | None, name: str | None) -> str | None:
        if column == "raises":
            raise RuntimeError
        return real(column, name)

    monkeypatch.setattr(store_module, "restriction", restriction)
    assert store.find_api_keys([good, bad]).keys() == {good}
    with Snapshot(postgres_url) as snapshot:
        assert [token_hash for token_hash, _ in snapshot.api_keys(None, None)] == [good]


# Suppressions.

#: As stored → the mailbox that must get nothing.
SUPPRESSED = {
    "gone@x.example.": "gone@x.example",
    "gone@b\u00fccher.example": "gone@xn--bcher-kva.example",
    "two@b\u00fccher.example.": "two@xn--bcher-kva.example",
    "gone@bu\u0308cherei.example": "gone@xn--bcherei-n2a.example",
    "gone@xn--bcher-kva.m\u00fcnchen.example": "gone@xn--bcher-kva.xn--mnchen-3ya.example",
    "gone@\u4f8b\u3048\u3002jp": "gone@xn--r8jz45g.jp",
    "a b@x.example": '"a b"@x.example',
    "plain@x.example": "plain@x.example",
}
#: In the same table, and of no concern.
ODD = ["", "@", "no address", "@x.example", "a@", "a@@b", "a@b..", "\ufffe@x", "%", "gone@x.example.."]


@pytest.fixture
def suppressed(query: Query) -> None:
    for number, email in enumerate([*SUPPRESSED, *ODD]):
        reason = ("bounced", "", "-", "?", "+")[number % 5]
        query(
            "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (gen_random_uuid(), 'user', %s, %s)",
            email,
            reason,
        )


@pytest.mark.usefixtures("suppressed")
@pytest.mark.parametrize("mailbox", SUPPRESSED.values())
def test_a_suppression_counts_in_whatever_spelling_it_is_stored(
    store: Store, make_row: Callable[..., EmailRow], mailbox: str
) -> None:
    assert store.find_suppressions("user", [mailbox, "other@x.example"]).keys() == {mailbox}
    outcome = store.insert([make_row(to=(mailbox,))], [mailbox, "other@x.example"])
    assert isinstance(outcome, Suppressed)
    assert outcome.reasons.keys() == {mailbox}
    assert store.find_suppressions("another", [mailbox]) == {}
    assert isinstance(store.insert([make_row(to=(mailbox,), user_id="another")], [mailbox]), Stored)


@pytest.mark.usefixtures("suppressed")
def test_warmed_lists_hold_the_mailboxes(postgres_url: str, cache: Cache) -> None:
    with Snapshot(postgres_url) as snapshot:
        Warming(snapshot, cache, Selection()).run()
    everyone = [*SUPPRESSED.values(), "clear@x.example"]
    screened = cache.screen("hash", "user", everyone, claim=None, intents=[])
    assert screened is not None
    assert set(screened.listed) == set(SUPPRESSED.values())
    assert screened.unknown == []


@pytest.mark.usefixtures("suppressed")
def test_a_reason_that_looks_like_a_state_of_ours_lets_nothing_through(store: Store, cache: Cache) -> None:
    """Redis holds `-` for an address that is clear: no stored reason may be taken for that."""
    found = store.find_suppressions("user", list(SUPPRESSED.values()))
    assert found.keys() == set(SUPPRESSED.values())
    cache.remember("user", found)
    assert cache.ping()
    screened = cache.screen("hash", "user", list(found), claim=None, intents=[])
    assert screened is not None
    assert {*screened.suppressed, *screened.unknown} == set(found)


# Rows that the sweep reads.


@pytest.mark.parametrize("created_at", ["-infinity", "4713-01-01 BC", "0001-01-01"])
def test_a_row_of_a_time_that_python_has_not_is_overdue_like_any(
    store: Store, make_row: Callable[..., EmailRow], query: Query, created_at: str
) -> None:
    rows = [make_row() for _ in range(3)]
    for row in rows:
        store.insert([row], ["to@x.example"])
    query("UPDATE emails SET created_at = now() - interval '1 hour'")
    query("UPDATE emails SET created_at = %s WHERE id = %s", created_at, rows[1].id)
    seen: list[str] = []
    after = None
    while page := store.overdue(timedelta(minutes=15), 1, after):
        after = page[-1]
        seen.append(after[1])
    assert sorted(seen) == sorted(row.id for row in rows)
