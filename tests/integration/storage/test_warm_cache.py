"""Warming: what it writes is a hit, it can be broken off at any point, and it says what it did."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from relay.core.records import EmailRow
from relay.intake.lookups import Lookups
from relay.operator.warming import Selection, Summary, Warming
from relay.postgres.group_commit import Stored
from relay.postgres.snapshot import Snapshot
from relay.postgres.store import Store
from relay.redis import suppression_lists
from relay.redis.cache import Cache
from relay.redis.suppression_lists import BUCKET_SIZE
from scripts.database import NewApiKey
from scripts.services import free_port

Query = Callable[..., list[dict[str, Any]]]
MakeKey = Callable[..., NewApiKey]
SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "warm_cache.py"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def warm(postgres_url: str, cache: Cache) -> Callable[..., Summary]:
    def run(**selection: Any) -> Summary:
        with Snapshot(postgres_url) as snapshot:
            return Warming(snapshot, cache, Selection(**selection)).run()

    return run


@pytest.fixture
def command(postgres_url: str, redis_url: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the script as an operator does, in some other directory."""

    def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "COLUMNS": "200"}
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=tmp_path,
            env={name: value for name, value in (environment | settings).items() if value is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def hash_of(key: NewApiKey) -> str:
    return hashlib.sha256(key.token.encode()).hexdigest()


def suppress_many(query: Query, user_id: str, count: int, *, prefix: str = "p") -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " SELECT gen_random_uuid(), %s, %s || i || '@x.example', 'bounced' FROM generate_series(1, %s) i",
        user_id,
        prefix,
        count,
    )


class NoReads(Store):
    """A store that may insert, and fails a test that asks it anything."""

    def find_api_key(self, token_hash: str) -> Any:
        raise AssertionError("asked for a key")

    def find_suppressions(self, user_id: str, emails: Any) -> dict[str, str]:
        raise AssertionError("asked for suppressions")


def test_after_warming_a_thousand_mails_make_no_query_but_inserts(
    postgres_url: str,
    cache: Cache,
    warm: Callable[..., Summary],
    make_api_key: MakeKey,
    make_row: Callable[..., EmailRow],
    query: Query,
) -> None:
    """Counted by Postgres itself: each statement of the store is a transaction."""
    key = make_api_key(domain=None)
    suppress_many(query, key.user_id, 1000)
    assert warm() == Summary(keys=1, lists=1, suppressions=1000, seconds=pytest.approx(0, abs=60))  # type: ignore[arg-type]

    def transactions() -> int:
        counted = query(
            "SELECT xact_commit + xact_rollback AS n FROM pg_stat_database WHERE datname = current_database()"
        )
        return int(counted[0]["n"])

    time.sleep(1.5)  # sessions that have ended may still be reporting
    before = transactions()
    store = NoReads(postgres_url)
    lookups = Lookups(store, cache)
    found = lookups.api_key(hash_of(key))
    assert found is not None
    for number in range(1000):
        recipient = f"q{number}@x.example"
        screening = lookups.screen(hash_of(key), key.user_id, [recipient], certain=True)
        assert screening.key == found
        assert screening.suppressed == {}
        assert store.insert([make_row(user_id=key.user_id, to=(recipient,))], [recipient]) == Stored()
    store.close()
    deadline = time.monotonic() + 20
    while transactions() - before < 1000 and time.monotonic() < deadline:
        time.sleep(0.2)
    # Besides the inserts: two to set up the session, and the counting.
    assert 1000 <= transactions() - before < 1000 + 2 + 110


@pytest.mark.parametrize("count", [0, 1, BUCKET_SIZE, BUCKET_SIZE + 1, 5000])
def test_lists_of_every_length_are_complete(
    postgres_url: str,
    cache: Cache,
    warm: Callable[..., Summary],
    make_api_key: MakeKey,
    query: Query,
    client: redis.Redis,
    count: int,
) -> None:
    key = make_api_key()
    suppress_many(query, key.user_id, count)
    for _ in range(2):  # again, over the list from before
        assert warm().suppressions == count
    buckets = client.keys("smtp-relay:suppressed:*")
    assert len(buckets) == max(1, -(-count // BUCKET_SIZE)), "the buckets of the first run are gone"
    assert all(0 < client.ttl(name) <= 86_400 + 120 for name in client.scan_iter())
    assert sum(client.scard(name) - 1 for name in buckets) in range(count - 2, count + 1)  # digests may coincide
    listed = [f"p{number}@x.example" for number in range(1, count + 1)]
    others = [f"q{number}@x.example" for number in range(3000)]
    found = cache.screen(hash_of(key), key.user_id, listed + others, claim=None, intents=())
    assert found is not None
    assert found.unknown == []
    assert list(found.listed)[:count] == listed
    assert len(found.listed) - count <= 2


def test_an_address_that_is_gone_from_postgres_is_let_through_at_once(
    store: Store, cache: Cache, warm: Callable[..., Summary], make_api_key: MakeKey, query: Query
) -> None:
    key = make_api_key()
    suppress_many(query, key.user_id, 10)
    warm()
    lookups = Lookups(store, cache)
    query("DELETE FROM email_suppressions WHERE email = 'p1@x.example'")
    assert lookups.screen(hash_of(key), key.user_id, ["p1@x.example"]).suppressed == {}
    assert lookups.screen(hash_of(key), key.user_id, ["p2@x.example"]).suppressed == {"p2@x.example": "bounced"}


def test_an_address_that_is_new_in_postgres_is_never_handed_on(
    store: Store,
    cache: Cache,
    warm: Callable[..., Summary],
    make_api_key: MakeKey,
    make_row: Callable[..., EmailRow],
    query: Query,
) -> None:
    key = make_api_key()
    warm()
    suppress_many(query, key.user_id, 1)
    lookups = Lookups(store, cache)
    assert lookups.screen(hash_of(key), key.user_id, ["p1@x.example"], certain=True).suppressed == {}
    assert store.insert([make_row(user_id=key.user_id)], ["p1@x.example"]) != Stored()


def test_a_bucket_that_redis_evicted_is_unknown_and_not_empty(
    cache: Cache, warm: Callable[..., Summary], make_api_key: MakeKey, query: Query, client: redis.Redis
) -> None:
    key = make_api_key()
    suppress_many(query, key.user_id, 10)
    warm()
    client.delete(*client.keys("smtp-relay:suppressed:*"))
    found = cache.screen(hash_of(key), key.user_id, ["p1@x.example", "q@x.example"], claim=None, intents=())
    assert found is not None
    assert (found.listed, found.unknown) == ([], ["p1@x.example", "q@x.example"])


def test_a_run_that_is_stopped_leaves_the_list_from_before(
    postgres_url: str, cache: Cache, warm: Callable[..., Summary], query: Query, client: redis.Redis
) -> None:
    suppress_many(query, "user", 1000)
    warm()
    before = sorted(client.keys())
    suppress_many(query, "user", 30_000, prefix="later")
    with Snapshot(postgres_url) as snapshot:
        warming = Warming(snapshot, cache, Selection(keys=False), progress=lambda *_: warming.stop())
        summary = warming.run()
    assert summary.interrupted
    assert (summary.lists, summary.suppressions) == (0, 0)
    assert sorted(client.keys()) == before
    found = cache.screen("h", "user", ["p7@x.example", "later7@x.example"], claim=None, intents=())
    assert found is not None
    assert found.listed == ["p7@x.example"]


def test_what_a_killed_run_leaves_expires(postgres_url: str, cache: Cache, query: Query, client: redis.Redis) -> None:
    suppress_many(query, "user", 30_000)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with Snapshot(postgres_url) as snapshot, pytest.raises(KeyboardInterrupt):
        Warming(snapshot, cache, Selection(keys=False), progress=killed).run()
    assert client.keys("smtp-relay:suppressions:*") == []
    assert all(0 < client.ttl(name) <= 3600 for name in client.scan_iter())


def test_keys_are_selected_by_user_and_by_use(
    cache: Cache, warm: Callable[..., Summary], make_api_key: MakeKey, query: Query, client: redis.Redis
) -> None:
    mine, hers, idle = make_api_key(user_id="me"), make_api_key(user_id="her"), make_api_key(user_id="me")
    query("UPDATE api_keys SET last_used_at = now() - interval '6 days' WHERE id <> %s", idle.id)
    query("UPDATE api_keys SET last_used_at = now() - interval '8 days' WHERE id = %s", idle.id)
    query("INSERT INTO api_keys (id, name, token_hash) VALUES (gen_random_uuid(), 'nobody', 'x')")

    def warmed(**selection: Any) -> set[str]:
        client.flushall()
        summary = warm(suppressions=False, **selection)
        names = {key.id for key in (mine, hers, idle) if cache.find_key(hash_of(key)).key}
        assert summary.keys == len(names)
        assert all(client.ttl(name) <= 60 for name in client.scan_iter())
        return names

    assert warmed() == {mine.id, hers.id, idle.id}
    assert warmed(user_id="me") == {mine.id, idle.id}
    assert warmed(active_within=timedelta(days=7)) == {mine.id, hers.id}
    assert warmed(active_within=timedelta(days=7), user_id="me") == {mine.id}


def test_one_users_list_alone(warm: Callable[..., Summary], query: Query, client: redis.Redis) -> None:
    for user_id in ("a", "b", "c"):
        suppress_many(query, user_id, 300)
    assert warm(user_id="b", list_seconds=500).suppressions == 300
    assert client.keys("smtp-relay:suppressions:*") == [b"smtp-relay:suppressions:b"]
    assert client.ttl("smtp-relay:suppressions:b") <= 500


def test_many_users_get_their_own_lists(
    cache: Cache, warm: Callable[..., Summary], make_api_key: MakeKey, query: Query
) -> None:
    for number in range(30):
        suppress_many(query, f"user-{number}", number * 20, prefix=f"u{number}-")
    make_api_key(user_id="user-0")
    summary = warm(keys=False)
    assert (summary.lists, summary.suppressions) == (30, sum(number * 20 for number in range(30)))
    for number in range(30):
        addresses = [f"u{number}-1@x.example", f"u{(number + 1) % 30}-1@x.example"]
        found = cache.screen("h", f"user-{number}", addresses, claim=None, intents=())
        assert found is not None
        assert found.listed == (addresses[:1] if number else [])
        assert found.unknown == []


def test_a_bucket_stays_in_its_compact_form(warm: Callable[..., Summary], query: Query, client: redis.Redis) -> None:
    """Less than six octets for an entry, where a key for each takes more than a hundred."""
    before = client.info("memory")["used_memory"]
    suppress_many(query, "user", 50_000)
    warm()
    buckets = client.keys("smtp-relay:suppressed:*")
    assert {client.object("encoding", name) for name in buckets} == {b"intset"}
    assert sum(client.memory_usage(name) for name in buckets) / 50_000 < 6
    assert client.info("memory")["used_memory"] - before < 50_000 * 12  # with what the connections take


def test_reading_is_in_pages(postgres_url: str, query: Query) -> None:
    suppress_many(query, "user", 25_000)
    with Snapshot(postgres_url) as snapshot:
        ((user_id, size, pages),) = [
            (user_id, size, [len(page) for page in pages]) for user_id, size, pages in snapshot.suppression_lists(None)
        ]
    assert (user_id, size, pages) == ("user", 25_000, [10_000, 10_000, 5000])


# The command.


def test_the_command_warms_and_says_so(
    command: Callable[..., subprocess.Popen[str]], make_api_key: MakeKey, query: Query, cache: Cache
) -> None:
    key = make_api_key()
    suppress_many(query, key.user_id, 700)
    process = command()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert re.fullmatch(r"Warmed 1 key and 700 suppressions of 1 user in \d+\.\d s \([\d,]+ entries/s\)\.\n", out)
    assert cache.find_key(hash_of(key)).key is not None


def test_the_command_has_a_dry_run_and_json_output(
    command: Callable[..., subprocess.Popen[str]], make_api_key: MakeKey, query: Query, client: redis.Redis
) -> None:
    suppress_many(query, make_api_key().user_id, 700)
    process = command("--dry-run", "--json", "--rate", "1000000", "--ttl", "2h", "--active-within", "7d")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary.pop("seconds") > 0
    assert summary.pop("entries_per_second") > 0
    assert summary == {
        "keys": 0,
        "lists": 1,
        "suppressions": 700,
        "interrupted": False,
        "dry_run": True,
        "exit_status": 0,
    }
    assert client.dbsize() == 0


def test_the_commands_rate_is_kept(command: Callable[..., subprocess.Popen[str]], query: Query) -> None:
    suppress_many(query, "user", 3000)
    out, _ = command("--suppressions-only", "--rate", "2000", "--json").communicate(timeout=60)
    assert json.loads(out)["seconds"] >= 1.4


@pytest.mark.parametrize(
    ("arguments", "settings", "status", "said"),
    [
        ((), {"DATABASE_URL": None}, 2, "DATABASE_URL is not set"),
        ((), {"REDIS_URL": None}, 2, "REDIS_URL is not set"),
        (("--ttl", "5 parsecs"), {}, 2, "--ttl"),
        (("--active-within", "7"), {}, 2, "--active-within"),
        (("--keys-only", "--suppressions-only"), {}, 2, "nothing to do"),
        (("--rate", "0"), {}, 2, "--rate"),
        ((), {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}, 1, "Redis failed"),
        ((), {"DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port()}/none"}, 1, "Postgres failed"),
    ],
)
def test_the_commands_exit_status_says_what_was_wrong(
    command: Callable[..., subprocess.Popen[str]],
    arguments: tuple[str, ...],
    settings: dict[str, str | None],
    status: int,
    said: str,
) -> None:
    process = command(*arguments, **settings)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert said in err
    assert "Traceback" not in err


def test_ctrl_c_ends_the_command_in_good_order(
    command: Callable[..., subprocess.Popen[str]], query: Query, client: redis.Redis
) -> None:
    for user_id in ("a", "b"):
        suppress_many(query, user_id, 30_000)
    process = command("--suppressions-only", "--rate", "15000")
    deadline = time.monotonic() + 30
    while not client.keys("smtp-relay:suppressed:*:b") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out.startswith("Interrupted after 0 keys and 30,000 suppressions of 1 user")
    assert client.keys("smtp-relay:suppressions:*") == [suppression_lists.marker_key("a")]
    assert client.keys("smtp-relay:suppressed:*:b") == []


def test_on_a_terminal_there_is_a_bar(postgres_url: str, redis_url: str, query: Query) -> None:
    suppress_many(query, "user", 20_000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--rate", "20000"],
        env=os.environ | {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, "TERM": "xterm", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # how Linux says that the other end is closed
        pass
    assert process.wait(60) == 0
    assert "suppressions" in shown.decode()
    assert "20000/20000" in shown.decode()
    assert "/s" in shown.decode()
