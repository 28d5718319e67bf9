"""A Redis that holds what no process has written, rows that can't be recorded: neither keeps anything from others."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import pytest
import redis

from relay.core.errors import Unavailable
from relay.delivery.handovers import Handovers
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.redis import keys
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink

Query = Callable[..., list[tuple[Any, ...]]]
Make = Callable[..., tuple[Handovers, Outgoing, ClaimStates]]


@pytest.fixture
def make(postgres_url: str, database: Database, redis_url: str) -> Iterator[Make]:
    """Makes processes: their handovers, rows and states in Redis. A lock is waited for half a second."""
    links: list[RedisLink] = []
    databases: list[Database] = []

    def run(service: str) -> tuple[Handovers, Outgoing, ClaimStates]:
        links.append(RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=0.05))
        databases.append(Database(postgres_url, statement_seconds=0.5, idle_limit=4))
        states, outgoing = ClaimStates(links[-1]), Outgoing(databases[-1], deadline=1.0)
        left = LeftRows(databases[-1], deadline=1.0)
        handovers = Handovers(states, outgoing, left, service=service, index=0, provider="ses")
        look(handovers)
        return handovers, outgoing, states

    yield run
    for link in links:
        link.close()
    for each in databases:
        each.close()


def look(handovers: Handovers) -> None:
    """One round, whatever it could not deal with."""
    with suppress(Unavailable):
        handovers.look()


def dead(make: Make, server: Any, ids: list[str]) -> str:
    """A process that has claimed these rows, and is silent; its name. The second half of them the provider has."""
    handovers, outgoing, states = make("dead")
    for row in outgoing.claim(ids):
        handovers.begin(str(row[0]))
    for email_id in ids[len(ids) // 2 :]:
        assert handovers.may_hand_over(email_id, records_sent=True)
        handovers.answered(email_id, "message-id")
    states.owners()  # what was posted has arrived
    server.zadd(keys.DELIVERY_OWNERS_KEY, {handovers._owner: 0})
    return handovers._owner


def odd_fields(chance: random.Random) -> dict[bytes, bytes]:
    """Fields of a hash as no process writes them."""
    ids = (b"", b"run2", b"\xff\xfe", b"no-uuid", b"0" * 36, b"01234567-89abcdef-0123-4567-89abcdef", b"x" * 5000)
    values = (b"", b"c", b"c:", b"\xff", b"c:9" * 9, b"s:" + b"9" * 40 + b":1:m", b"c:\xd9\xa1:1:", b"h:-1:1:", b"::::")
    return {chance.choice(ids) + bytes([48 + number]): chance.choice(values) for number in range(5)} | {
        chance.choice(ids) or b"a": b"s:1764246000000000:1:\xff\0",
        b"00000000-0000-4000-8000-000000000000": chance.choice(values),
        b"00000000-0000-4000-8000-000000000001": b"c:" + b"9" * 30 + b":1:",
    }


@pytest.mark.parametrize("seed", range(6))
def test_what_no_process_has_written_keeps_nothing_from_others(
    add_email: Callable[..., str], make: Make, redis_url: str, query: Query, seed: int
) -> None:
    chance = random.Random(seed)
    ids = [add_email() for _ in range(4)]
    with redis.Redis.from_url(redis_url) as server:
        owner = dead(make, server, ids)
        server.hset(keys.DELIVERY_CLAIMS_PREFIX + owner.encode(), mapping=odd_fields(chance))
        for name in (b"", b"\xff\xfe", b"next:0:", b"next:0:a", b"other", b"x" * 5000):
            server.zadd(keys.DELIVERY_OWNERS_KEY, {name: -chance.randrange(10)})
            if chance.random() < 0.5:
                server.hset(keys.DELIVERY_CLAIMS_PREFIX + name, mapping=odd_fields(chance))
            elif chance.random() < 0.5:
                server.set(keys.DELIVERY_CLAIMS_PREFIX + name, b"text")
        handovers, _, _ = make("next")
        for _ in range(3):
            look(handovers)
        statuses = dict(query("SELECT id::text, status FROM emails"))
        assert [statuses[email_id] for email_id in ids] == ["queued", "queued", "sent", "sent"]
        # All of it is dealt with: what no row is can't be recorded, and would be looked at again for ever.
        assert server.zscore(keys.DELIVERY_OWNERS_KEY, owner) is None


def test_a_redis_that_takes_nothing_more_puts_a_mail_back_once(
    add_email: Callable[..., str], make: Make, redis_url: str
) -> None:
    """It is full, and answers all the same. What it took before may say that the mail was not handed over."""
    email_id = add_email()
    handovers, outgoing, _ = make("full")
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory", 1)
        try:
            allowed = []
            for _ in range(2):
                assert outgoing.claim([email_id])
                handovers.begin(email_id)
                allowed.append(handovers.may_hand_over(email_id, records_sent=True))
                outgoing.put_back([email_id], 0.0)
                handovers.end(email_id)
            assert allowed == [False, True]
        finally:
            server.config_set("maxmemory", 0)
    look(handovers)
    assert outgoing.claim([email_id])
    handovers.begin(email_id)
    assert handovers._claims[email_id].owner


@pytest.mark.parametrize("trouble", ["lock", "trigger"])
@pytest.mark.parametrize("whose", ["its own", "a dead process's"])
def test_a_row_that_cannot_be_recorded_keeps_no_other_from_it(
    add_email: Callable[..., str], make: Make, redis_url: str, query: Query, postgres_url: str, whose: str, trouble: str
) -> None:
    ids = [add_email() for _ in range(6)]
    bad = [ids[0], ids[3]]  # one that was not handed over, one that the provider has
    with redis.Redis.from_url(redis_url) as server:
        handovers, outgoing, states = make("dead")
        for row in outgoing.claim(ids):
            handovers.begin(str(row[0]))
        for email_id in ids[3:]:
            assert handovers.may_hand_over(email_id, records_sent=True)
            handovers.answered(email_id, "message-id")
        states.owners()  # what was posted has arrived
        if whose == "its own":
            for email_id in ids:
                handovers.leave(email_id)
        with trouble_with(bad, trouble, query, postgres_url):
            if whose != "its own":
                server.zadd(keys.DELIVERY_OWNERS_KEY, {handovers._owner: 0})
                handovers, _, _ = make("next")
            look(handovers)
            statuses = dict(query("SELECT id::text, status FROM emails"))
            expected = ["processing", "queued", "queued", "processing", "sent", "sent"]
            assert [statuses[email_id] for email_id in ids] == expected
        if whose != "its own":
            for name in server.zrange(keys.DELIVERY_OWNERS_KEY, 0, -1):
                if name.startswith(b"dead"):
                    server.zadd(keys.DELIVERY_OWNERS_KEY, {name: 0})
        look(handovers)
        statuses = dict(query("SELECT id::text, status FROM emails"))
        assert [statuses[email_id] for email_id in ids] == ["queued"] * 3 + ["sent"] * 3


@contextmanager
def trouble_with(ids: list[str], trouble: str, query: Query, url: str) -> Iterator[None]:
    """Another transaction holds these rows, or a trigger refuses each change of theirs."""
    if trouble == "lock":
        with psycopg2.connect(url) as holding, holding.cursor() as cursor:
            cursor.execute("SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE", (ids,))
            yield
        holding.close()
        return
    query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.id = ANY (TG_ARGV[0]::uuid[]) THEN RAISE 'refused'; END IF; RETURN NEW; END $$;"
        f" CREATE TRIGGER refuse BEFORE UPDATE ON emails FOR EACH ROW EXECUTE FUNCTION refuse('{{{','.join(ids)}}}')"
    )
    try:
        yield
    finally:
        query("DROP TRIGGER refuse ON emails; DROP FUNCTION refuse")


def test_a_row_that_can_never_be_recorded_waits_longer_each_time(
    add_email: Callable[..., str], make: Make, query: Query
) -> None:
    """The first time it may be Postgres that was away; after that each round would call the provider once more."""
    email_id = add_email()
    handovers, outgoing, _ = make("one")
    waits = []
    for _ in range(12):
        for row in outgoing.claim([email_id]):
            handovers.begin(str(row[0]))
        handovers.leave(email_id)
        look(handovers)
        ((wait,),) = query("SELECT extract(epoch FROM provider_next_retry_at - now())::float8 FROM emails")
        waits.append(max(0.0, wait))
        query("UPDATE emails SET provider_next_retry_at = NULL")
    assert waits[0] == 0.0
    assert waits[1:5] == pytest.approx([4, 8, 16, 32], abs=2)
    assert waits[-1] == pytest.approx(900, abs=2)
    for row in outgoing.claim([email_id]):
        handovers.begin(str(row[0]))
    handovers.end(email_id)
    assert not handovers._unrecorded
