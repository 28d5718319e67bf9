"""What greenlets write about their claims at one time is one command for Valkey; of a row the last word counts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import gevent
import gevent.event
import pytest
import redis

from relay.core import idleness
from relay.core.errors import RedisUnavailable
from relay.redis.claim_states import CLAIMED, HANDING_OVER, SENT, ClaimStates, Note
from relay.redis.keys import DELIVERY_CLAIMS_PREFIX
from relay.redis.link import RedisLink


@pytest.fixture
def states(redis_url: str) -> Iterator[ClaimStates]:
    link = RedisLink(redis_url, verify_tls=True, timeout=5.0, pause=0.05)
    yield ClaimStates(link)
    link.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def note(email_id: str, state: str, mark: int = 1) -> Note:
    return Note(email_id=email_id, state=state, mark=mark, records_sent=True, message_id="")


def rows_of(server: Any, owner: str) -> dict[str, str]:
    """What Valkey knows of an owner's rows."""
    fields = server.hgetall(DELIVERY_CLAIMS_PREFIX + owner.encode())
    return {name.decode(): value.decode() for name, value in fields.items() if name not in (b"run", b"dead")}


def test_what_many_write_at_one_time_is_one_command(
    states: ClaimStates, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idleness, "LONGEST", 60.0)
    owner = f"s:0:{uuid4()}"
    assert states.beat(owner, first=True) is not None
    ids = [str(uuid4()) for _ in range(20)]
    server.config_resetstat()

    def deliver(email_id: str) -> bool:
        states.post(owner, note(email_id, CLAIMED))
        return states.hand_over(owner, note(email_id, HANDING_OVER))

    deliveries = [gevent.spawn(deliver, email_id) for email_id in ids]
    assert [each.get(timeout=10) for each in deliveries] == [True] * 20
    assert rows_of(server, owner) == {email_id: note(email_id, HANDING_OVER).value() for email_id in ids}
    for each in [gevent.spawn(states.post_end, owner, email_id) for email_id in ids]:
        each.get(timeout=10)
    states.owners()
    calls = {name: each["calls"] for name, each in server.info("commandstats").items()}
    assert calls["cmdstat_evalsha"] + calls.get("cmdstat_eval", 0) <= 2  # the server may have to learn the script
    assert calls["cmdstat_hdel"] == 1
    # One for all claims, and 20 within the script.
    assert calls["cmdstat_hset"] == 21
    assert rows_of(server, owner) == {}


@pytest.mark.parametrize("seed", range(8))
def test_the_last_word_about_a_row_counts(states: ClaimStates, server: Any, seed: int) -> None:
    """Whatever is written, by whom, and whatever is asked in between."""
    chance = random.Random(seed)
    owners = [f"s:{number}:{uuid4()}" for number in range(2)]
    for owner in owners:
        assert states.beat(owner, first=True) is not None
    ids = [str(UUID(int=chance.getrandbits(128))) for _ in range(5)]
    expected: dict[str, dict[str, str]] = {owner: {} for owner in owners}
    for mark in range(1000, 1120):
        owner, email_id = chance.choice(owners), chance.choice(ids)
        match chance.randrange(6):
            case 0 | 1:
                written = note(email_id, chance.choice((CLAIMED, SENT)), mark)
                states.post(owner, written)
                expected[owner][email_id] = written.value()
            case 2:
                states.post_end(owner, email_id)
                expected[owner].pop(email_id, None)
            case 3:
                written = note(email_id, HANDING_OVER, mark)
                assert states.hand_over(owner, written)
                expected[owner][email_id] = written.value()
            case 4:
                # What another one asks is answered by what has been written so far.
                asked = chance.randrange(1000, 1120)
                known = {each for row in expected.values() for each, value in row.items() if f":{asked}:" in value}
                assert states.held(dict.fromkeys(ids, asked)) == known
            case _:
                gevent.sleep(0)
    states.owners()
    assert {owner: rows_of(server, owner) for owner in owners} == expected


def test_what_was_posted_is_there_before_the_process_retires(states: ClaimStates, server: Any) -> None:
    owner, email_id = f"s:0:{uuid4()}", str(uuid4())
    states.retire("s:0:another")  # the server knows the script from now on
    assert states.beat(owner, first=True) is not None
    states.post(owner, note(email_id, SENT))
    states.retire(owner)
    assert list(rows_of(server, owner)) == [email_id]
    estate = states.take(owner, ended=True)
    assert estate is not None
    assert [each.email_id for each in estate.notes] == [email_id]


def test_none_is_handed_over_for_an_owner_that_was_taken_for_ended(states: ClaimStates) -> None:
    alive, dead = f"s:0:{uuid4()}", f"s:1:{uuid4()}"
    for owner in (alive, dead):
        assert states.beat(owner, first=True) is not None
    assert states.take(dead, ended=True) is not None
    asked = [(owner, str(uuid4())) for owner in (alive, dead, alive, dead)]
    answers = [gevent.spawn(states.hand_over, owner, note(email_id, HANDING_OVER)) for owner, email_id in asked]
    assert [each.get(timeout=10) for each in answers] == [True, False, True, False]


def test_who_waits_for_a_greenlet_that_is_ended_knows_nothing(
    states: ClaimStates, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = f"s:0:{uuid4()}"
    assert states.beat(owner, first=True) is not None
    begun = gevent.event.Event()
    monkeypatch.setattr(states, "_write", lambda: (begun.set(), gevent.sleep(60)))
    asked = gevent.spawn(states.hand_over, owner, note(str(uuid4()), HANDING_OVER))
    assert begun.wait(10)
    worker = states._handing_over._worker
    assert worker is not None
    worker.kill()
    with pytest.raises(RedisUnavailable):
        asked.get(timeout=10)
