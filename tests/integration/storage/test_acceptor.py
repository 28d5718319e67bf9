"""One message through the acceptor, with a real Postgres and a real Valkey: who it may be from, and in what time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import pytest

from config.settings import RecipientRule
from relay.core import deadlines
from relay.core.records import ApiKey
from relay.intake.acceptor import AcceptOptions, Acceptor
from relay.intake.lookups import Lookups
from relay.postgres.group_commit import Outcome
from relay.postgres.store import Store
from relay.redis.cache import Cache
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict
from scripts.database import NewApiKey

Query = Callable[..., list[dict[str, Any]]]
Accept = Callable[..., Verdict]

HEADERS = ("From: ann@good.example", "To: to@x.example", "Subject: s")
#: Beside From: who a reader may take for the sender.
SENDERS = ("Sender: eve@evil.example", "Resent-From: Eve <eve@evil.example>", "Resent-Sender: eve@evil.example")


@pytest.fixture
def accept(store: Store, cache: Cache) -> Accept:
    def accept(
        key: NewApiKey,
        *lines: str,
        reverse_path: tuple[str, str] = ("", ""),
        login_domain: str | None = None,
        user_id: str | None = None,
    ) -> Verdict:
        body = Body(1_000_000)
        body.write("".join(f"{line}\r\n" for line in (*lines, "", "Hi")).encode())
        token_hash = hashlib.sha256(key.token.encode()).hexdigest()
        login = Login(token_hash, ApiKey(key.id, user_id or key.user_id, "full_access", login_domain))
        envelope = ("to@x.example",)
        return Acceptor(Lookups(store, cache), store, AcceptOptions()).store(
            Submission(login, envelope, RecipientRule.MERGE, body, "test", reverse_path)
        )

    return accept


def stored_headers(query: Query) -> set[str]:
    (row,) = query("SELECT headers FROM emails")
    return {name.lower() for name in row["headers"] or {}}


# Who else the header names as its sender


@pytest.mark.parametrize("line", SENDERS)
@pytest.mark.parametrize("at_login", ["good.example", None], ids=["before the login", "after the login"])
def test_a_restricted_key_sends_no_header_with_another_sender(
    accept: Accept, make_api_key: Callable[..., NewApiKey], query: Query, line: str, at_login: str | None
) -> None:
    """Also where the restriction came after the login: Postgres has it, the connection does not know it."""
    key = make_api_key(domain="good.example")
    assert accept(key, *HEADERS, line, "X-Kept: yes", login_domain=at_login).outcome == "queued"
    assert stored_headers(query) == {"x-kept"}


@pytest.mark.parametrize("line", SENDERS)
def test_a_key_without_a_restriction_names_whom_it_likes(
    accept: Accept, make_api_key: Callable[..., NewApiKey], query: Query, line: str
) -> None:
    assert accept(make_api_key(), *HEADERS, line).outcome == "queued"
    free = stored_headers(query)
    query("DELETE FROM emails")
    own = line.replace("evil", "good")
    assert accept(make_api_key(domain="good.example"), *HEADERS, own, login_domain="good.example").outcome == "queued"
    assert stored_headers(query) == free, "what is in its own domain stays"


# A From that holds a name alone: the envelope's reverse-path is the address, and is judged as From is


@pytest.mark.parametrize("name", ["From: Ann", 'From: "Ann"', "From: Ann Other"])
@pytest.mark.parametrize(
    ("reverse_path", "outcome"),
    [
        (("ann", "good.example"), "queued"),
        (("ann", "GOOD.example"), "queued"),
        (("ann", "evil.example"), "domain"),
        (("ann", "sub.good.example"), "domain"),
        (("ann", "good.example.evil.example"), "domain"),
        (("", ""), "no_from"),
        (("ann", ""), "no_from"),
        (("ann", "[192.0.2.1]"), "no_from"),
        (("ann", "a b"), "no_from"),
    ],
)
def test_a_reverse_path_in_place_of_from_is_judged_as_from(
    accept: Accept,
    make_api_key: Callable[..., NewApiKey],
    query: Query,
    name: str,
    reverse_path: tuple[str, str],
    outcome: str,
) -> None:
    key = make_api_key(domain="good.example")
    verdict = accept(key, name, *HEADERS[1:], reverse_path=reverse_path, login_domain="good.example")
    assert verdict.outcome == outcome
    senders = [row["from"].rpartition("<")[2].rstrip(">") for row in query('SELECT "from" FROM emails')]
    assert senders == (["ann@good.example"] if outcome == "queued" else [])


def test_the_envelope_is_not_asked_where_from_has_an_address(
    accept: Accept, make_api_key: Callable[..., NewApiKey], query: Query
) -> None:
    key = make_api_key(domain="good.example")
    lines = ("From: eve@evil.example", *HEADERS[1:])
    assert accept(key, *lines, reverse_path=("ann", "good.example"), login_domain="good.example").outcome == "domain"
    assert query("SELECT 1 FROM emails") == []


def test_a_key_that_belongs_to_another_user_by_now_ends_the_session(
    accept: Accept, make_api_key: Callable[..., NewApiKey], query: Query
) -> None:
    """Else its mails would be the former user's, and judged by that user's suppressions."""
    assert accept(make_api_key(user_id="new"), *HEADERS, user_id="former").outcome == "revoked"
    assert query("SELECT 1 FROM emails") == []


# Time


def test_all_that_postgres_is_asked_has_less_than_five_seconds_together(
    store: Store,
    accept: Accept,
    make_api_key: Callable[..., NewApiKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[float] = []
    insert = store.insert

    def noting(*arguments: Any) -> Outcome:
        left.append(deadlines.seconds_left(deadlines.after(math.inf)))
        return insert(*arguments)

    monkeypatch.setattr(store, "insert", noting)
    assert accept(make_api_key(), *HEADERS).outcome == "queued"
    assert 0 < left[0] < 5.0
    assert deadlines.after(1e6) > left[0] + 1000, "the end is this message's alone"


def test_a_lease_is_longer_than_any_commit(store: Store) -> None:
    """Ours is given up in time; the server may go on with it until its own limit."""
    options = AcceptOptions()
    assert options.answer_seconds < 5.0
    assert options.lease_seconds >= options.answer_seconds + store._deadline + 5.0
