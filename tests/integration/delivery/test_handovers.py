"""Who has a mail, when processes die, stand still or lose Redis: real rows, real Valkey, no provider.

The ledger notes each call that would go to the provider. A row whose call may have reached it is never called for again
without the question whether the provider has it (`unclear`), and nothing stays claimed.
"""

from __future__ import annotations

import random
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
import redis

from relay.core import metrics
from relay.core.errors import PostgresUnavailable, RedisUnavailable
from relay.delivery import handovers as handovers_module
from relay.delivery.handovers import EVENT_SECONDS, Handovers
from relay.delivery.unclear import LeftBehind
from relay.postgres.database import Database
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.sent_rows import SentRow
from relay.postgres.waiting import PLANNER, WaitingRows
from relay.redis import keys
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink

Query = Callable[..., list[tuple[Any, ...]]]
Make = Callable[..., "Process"]


class Process:
    """A delivery process as far as claims go: a name, its own leases, its own connection to Redis."""

    def __init__(self, database: Database, url: str, *, service: str = "s", index: int = 0) -> None:
        self.link = RedisLink(url, verify_tls=True, timeout=5.0, pause=0.05)
        self.states = ClaimStates(self.link)
        self.outgoing = Outgoing(database)
        self.handovers = Handovers(
            self.states, self.outgoing, LeftRows(database), service=service, index=index, provider="ses"
        )
        self.index = index
        #: Mails that it has claimed: email id → how far it is.
        self.mails: dict[str, str] = {}

    def claim(self, email_ids: list[str]) -> dict[str, bool]:
        """Claims; which of them it has, and whether each is unclear."""
        rows = self.outgoing.claim(email_ids)
        for row in rows:
            self.handovers.begin(str(row[0]))
            self.mails[str(row[0])] = "claimed"
        return {str(row[0]): bool(row[-1]) for row in rows}

    def hand_over(self, email_id: str, *, records_sent: bool = True) -> bool:
        return self.handovers.may_hand_over(email_id, records_sent=records_sent)

    def flush(self) -> None:
        """What was posted has arrived."""
        self.states.owners()

    def die(self) -> None:
        """Nothing more is heard of it; what was posted is on its way."""
        self.flush()
        self.link.close()


@pytest.fixture
def make(database: Database, redis_url: str) -> Iterator[Make]:
    with ExitStack() as closing:

        def run(**named: Any) -> Process:
            process = Process(database, redis_url, **named)
            closing.callback(process.link.close)
            process.handovers.look()
            return process

        yield run


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def left_behind(postgres_url: str, left: LeftRows) -> Iterator[Callable[[ClaimStates], None]]:
    """Looks at claims as a scan does."""
    database = Database(postgres_url, statement_seconds=4.5, idle_limit=2, switched_off=PLANNER)

    def look(states: ClaimStates) -> None:
        each = LeftBehind(left, states)
        each.settle(WaitingRows(database).processing(1000))
        each.end_round()

    yield look
    database.close()


def silence(server: Any, process: Process) -> None:
    """As if the process had not beaten for long."""
    server.zadd(keys.DELIVERY_OWNERS_KEY, {process.handovers._owner: 0})


def age(query: Query) -> None:
    query(
        "UPDATE emails SET provider_last_attempted_at = provider_last_attempted_at - interval '1 hour',"
        " provider_next_retry_at = provider_next_retry_at - interval '1 hour'"
    )


def state(query: Query, email_id: str) -> tuple[str, bool]:
    """Its status, and whether it is unclear."""
    ((status, code),) = query("SELECT status, provider_last_error_code FROM emails WHERE id = %s", email_id)
    return status, code == "DeliveryUnclear"


def test_what_a_dead_process_had_not_handed_over_comes_back_at_once_to_its_successor(
    add_email: Callable[..., str], make: Make, query: Query
) -> None:
    ids = [add_email() for _ in range(3)]
    dead = make()
    dead.claim(ids)
    assert dead.hand_over(ids[1])
    assert dead.hand_over(ids[2])
    dead.handovers.answered(ids[2], "message-id")
    dead.die()
    found = metrics.DELIVERY_UNCLEAR.labels("found").value
    make()
    assert metrics.DELIVERY_UNCLEAR.labels("found").value == found + 1
    assert state(query, ids[0]) == ("queued", False)
    assert state(query, ids[1]) == ("queued", True)
    assert state(query, ids[2]) == ("sent", False)
    events = query("SELECT email_id::text, source_id, payload->>'message_id' FROM email_events")
    assert events == [(ids[2], f"provider-sent:{ids[2]}", "message-id")]


def test_another_machine_learns_of_a_death_by_silence_and_leaves_what_may_be_on_its_way(
    add_email: Callable[..., str],
    make: Make,
    server: Any,
    query: Query,
    left_behind: Callable[[ClaimStates], None],
) -> None:
    ids = [add_email() for _ in range(3)]
    dead, other = make(), make(service="other")
    dead.claim(ids)
    dead.hand_over(ids[1])
    dead.hand_over(ids[2])
    dead.handovers.answered(ids[2], "message-id")
    dead.die()
    other.handovers.look()
    assert [state(query, each)[0] for each in ids] == ["processing"] * 3  # it may be alive
    silence(server, dead)
    other.handovers.look()
    assert [state(query, each) for each in ids] == [("queued", False), ("processing", False), ("sent", False)]
    age(query)
    left_behind(other.states)
    assert state(query, ids[1]) == ("queued", True)


def test_who_was_taken_for_dead_hands_nothing_over_and_goes_on_under_another_name(
    add_email: Callable[..., str], make: Make, server: Any, query: Query
) -> None:
    email_id, later = add_email(), add_email()
    stopped, other = make(), make(service="other")
    stopped.claim([email_id])
    silence(server, stopped)
    other.handovers.look()
    assert other.claim([email_id]) == {email_id: False}
    assert not stopped.hand_over(email_id)
    assert other.hand_over(email_id)
    stopped.claim([later])
    assert stopped.hand_over(later)


def test_a_server_that_has_started_anew_is_not_believed(
    add_email: Callable[..., str], make: Make, server: Any, query: Query
) -> None:
    """It may have started from an old copy, in which what was handed over is still `claimed`."""
    email_id = add_email()
    dead = make()
    dead.claim([email_id])
    dead.die()
    (name,) = server.keys(keys.DELIVERY_CLAIMS_PREFIX + b"*")
    server.hset(name, "run", "another")
    make()
    assert state(query, email_id) == ("queued", True)


def test_a_process_that_has_written_a_claim_to_redis_hands_nothing_over_without_it(
    add_email: Callable[..., str], make: Make, query: Query
) -> None:
    """Redis may come back, and say that the row had not been handed over."""
    email_id = add_email()
    process = make()
    process.claim([email_id])
    process.die()
    assert not process.hand_over(email_id)
    process.outgoing.put_back([email_id], 0.0)
    process.claim([email_id])  # Redis is told nothing of this one
    assert process.hand_over(email_id)


def test_what_redis_does_not_have_is_written_again_with_the_next_beat(
    add_email: Callable[..., str], make: Make, server: Any, query: Query
) -> None:
    """A process that dies then has left nothing that would wait for the end of its lease."""
    unwritten, lost, answered, kept = (add_email() for _ in range(4))
    process = make()
    process.handovers._beat = float("-inf")  # as before the first beat, or while Redis is away
    process.claim([unwritten])
    process.handovers._say_alive()
    process.claim([lost, answered, kept])
    for email_id in (answered, kept):
        assert process.hand_over(email_id)
        process.handovers.answered(email_id, "message-id")
    process.flush()
    assert process.handovers.keep(SentRow(kept, None))
    (name,) = server.keys(keys.DELIVERY_CLAIMS_PREFIX + b"*")
    assert unwritten.encode() not in server.hkeys(name)
    server.hdel(name, lost, answered)
    process.handovers.look()
    process.die()
    make()
    assert [state(query, each) for each in (unwritten, lost)] == [("queued", False)] * 2
    assert [state(query, each) for each in (answered, kept)] == [("sent", False)] * 2


def test_under_a_new_name_answers_of_the_provider_are_written_and_open_claims_are_not(
    add_email: Callable[..., str], make: Make, server: Any, query: Query
) -> None:
    """Others may have a row that was claimed under the earlier name, which Redis has forgotten."""
    waiting, answered, kept = (add_email() for _ in range(3))
    process = make()
    process.claim([waiting, answered, kept])
    for email_id in (answered, kept):
        assert process.hand_over(email_id)
        process.handovers.answered(email_id, "message-id")
    assert process.handovers.keep(SentRow(kept, None))
    server.flushall()
    process.handovers.look()
    assert not process.hand_over(waiting)
    process.die()
    make()
    assert [state(query, each)[0] for each in (waiting, answered, kept)] == ["processing", "sent", "sent"]


def test_where_an_event_is_to_come_it_is_waited_for(add_email: Callable[..., str], make: Make, query: Query) -> None:
    email_id = add_email()
    dead = make()
    dead.claim([email_id])
    dead.hand_over(email_id, records_sent=False)
    dead.die()
    make()
    waits = f"{EVENT_SECONDS - 60:.0f} s"
    assert query("SELECT provider_next_retry_at > now() + %s::interval FROM emails", waits) == [(True,)]


def test_while_its_process_lives_a_claim_is_no_older_than_its_last_beat(
    add_email: Callable[..., str], make: Make, query: Query, left_behind: Callable[[ClaimStates], None]
) -> None:
    """Its answer may wait for Postgres for longer than a lease."""
    mine, dead = add_email(), add_email()
    process, other = make(), make(service="other")
    process.claim([mine])
    process.hand_over(mine)
    other.claim([dead])
    query("UPDATE emails SET status = 'processing', provider_last_attempted_at = now() WHERE id = %s", dead)
    process.flush()
    give_up_all(process)
    assert state(query, mine) == ("processing", False)
    assert state(query, dead) == ("queued", True)


def give_up_all(process: Process) -> None:
    """A scan to which each claim is as old as a claim can be: the marks stay the same."""
    left = LeftBehind(LeftRows(process.outgoing._database), process.states)
    database = Database(process.outgoing._database._url, statement_seconds=4.5, idle_limit=1, switched_off=PLANNER)
    rows = [row._replace(expired=True, ours=True) for row in WaitingRows(database).processing(10)]
    database.close()
    left.settle(rows)


def test_an_answer_that_an_ended_process_has_left_keeps_its_row_until_it_is_recorded(
    add_email: Callable[..., str], make: Make, server: Any, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't be recorded for longer than a lease; the claim of a mail whose answer is not known is given up."""
    answered, handed_over = add_email(), add_email()
    process, other = make(), make(service="other")
    process.claim([answered, handed_over])
    assert process.hand_over(answered)
    assert process.hand_over(handed_over)
    process.handovers.answered(answered, "message-id")
    process.die()
    silence(server, process)

    def away(*_: Any) -> None:
        raise PostgresUnavailable()

    with monkeypatch.context() as patched:
        patched.setattr(Outgoing, "sent", away)
        with pytest.raises(PostgresUnavailable):
            other.handovers.look()
    give_up_all(other)
    assert state(query, answered) == ("processing", False)
    assert state(query, handed_over) == ("queued", True)
    silence(server, process)
    other.handovers.look()
    assert state(query, answered) == ("sent", False)


def test_an_answer_that_postgres_did_not_take_is_recorded_when_it_is_back(
    add_email: Callable[..., str], make: Make, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process itself, and by its successor where it died meanwhile."""
    ids = [add_email() for _ in range(2)]
    process = make()
    process.claim(ids)
    for email_id in ids:
        process.hand_over(email_id)
        process.handovers.answered(email_id, "message-id")
    process.handovers.leave(ids[0])

    def away(*_: Any) -> None:
        raise PostgresUnavailable()

    with monkeypatch.context() as patched:
        patched.setattr(Outgoing, "sent", away)
        with pytest.raises(PostgresUnavailable):
            process.handovers.look()
        process.flush()
        died = make(service="other", index=1)  # finds nothing of it
        assert state(query, ids[0])[0] == "processing"
        died.die()
    process.handovers.look()
    assert [state(query, each)[0] for each in ids] == ["sent", "processing"]
    process.die()
    make()
    assert [state(query, each)[0] for each in ids] == ["sent", "sent"]
    assert query("SELECT count(*) FROM email_events WHERE type = 'sent'") == [(2,)]


def test_the_end_of_a_process_leaves_what_it_has_not_finished_to_others_at_once(
    add_email: Callable[..., str], make: Make, server: Any, query: Query
) -> None:
    email_id = add_email()
    process, other = make(), make(service="other")
    process.claim([email_id])
    process.flush()
    process.handovers.close()
    other.handovers.look()
    assert state(query, email_id) == ("queued", False)
    other.handovers.close()
    assert [name for name in server.keys(b"*") if server.ttl(name) == -1] == []


@pytest.mark.parametrize("seed", range(4))
def test_no_sequence_of_deaths_and_outages_sends_a_mail_again_unasked_or_leaves_it_claimed(
    add_email: Callable[..., str],
    make: Make,
    server: Any,
    query: Query,
    left_behind: Callable[[ClaimStates], None],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(handovers_module, "EVENT_SECONDS", 0.0)
    processes = [make(service=service) for service in ("a", "b")]
    #: Calls to the provider that were not refused as far as is known, by mail, and mails that it took.
    calls: defaultdict[str, int] = defaultdict(int)
    yes: set[str] = set()
    forgot = False
    ids: list[str] = []
    for _ in range(150):
        process = chance.choice(processes)
        if not process.mails or chance.random() < 0.2:
            ids.append(add_email())
            unclear = {email_id for email_id, is_ in process.claim(chance.sample(ids, min(len(ids), 5))).items() if is_}
            assert forgot or unclear <= calls.keys(), "nothing was unclear"
            calls.update(dict.fromkeys(unclear, 0))  # now it is asked
        fate = chance.random()
        try:
            if fate < 0.75 and process.mails:
                _step(process, chance, calls, yes)
            elif fate < 0.85:
                processes.remove(process)
                processes.append(_killed(process, chance, make, server))
            elif fate < 0.92:  # stands still for so long that others take it for dead
                silence(server, process)
                chance.choice(processes).handovers.look()
            elif fate < 0.94:
                server.flushall()
                forgot = True
            else:
                process.handovers.look()
        except (RedisUnavailable, PostgresUnavailable):
            gevent.sleep(0.06)
    for process in processes:
        process.link.close()
    age(query)
    last = make(service="last")
    names = [name for name in server.zrange(keys.DELIVERY_OWNERS_KEY, 0, -1) if not name.startswith(b"last")]
    server.zadd(keys.DELIVERY_OWNERS_KEY, dict.fromkeys([*names, b"nobody"], 0))
    last.handovers.look()
    left_behind(last.states)
    assert query("SELECT count(*) FROM emails WHERE status = 'processing'") == [(0,)]
    for email_id in ids:
        status, unclear = state(query, email_id)
        assert status == "sent" or unclear or not calls[email_id], email_id


def _killed(process: Process, chance: random.Random, make: Make, server: Any) -> Process:
    """Kills it: what waited in its connection is lost or not. Who comes after it, by its master or elsewhere."""
    if chance.random() < 0.5:
        process.flush()
    process.link.close()
    service = process.handovers._place[0]
    if chance.random() < 0.5:
        return make(service=service)
    silence(server, process)
    return make(service=service, index=secrets.randbelow(1 << 30))


def _step(process: Process, chance: random.Random, calls: dict[str, int], yes: set[str]) -> None:
    """One step of one of its mails."""
    email_id = chance.choice(list(process.mails))
    match process.mails[email_id]:
        case "claimed":
            if process.hand_over(email_id, records_sent=chance.random() < 0.5):
                assert not calls[email_id], "it may be sent twice, and nobody has asked"
                calls[email_id] += 1
                process.mails[email_id] = "called"
            else:
                process.outgoing.put_back([email_id], 0.0)
                process.handovers.end(email_id)
                del process.mails[email_id]
        case "called":
            if chance.random() < 0.7:
                process.handovers.answered(email_id, "message-id")
                yes.add(email_id)
                process.mails[email_id] = "yes"
            else:
                calls[email_id] = max(0, calls[email_id] - 1)
                process.handovers.answered(email_id, None)
                process.mails[email_id] = "no"
        case "yes":
            if chance.random() < 0.5:
                process.outgoing.sent(email_id, None)
                process.handovers.end(email_id)
            else:
                process.handovers.leave(email_id)
            del process.mails[email_id]
        case _:
            if chance.random() < 0.5:
                process.outgoing.put_back([email_id], 0.0)
                process.handovers.end(email_id)
            else:
                process.handovers.leave(email_id)
            del process.mails[email_id]
