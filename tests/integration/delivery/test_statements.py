"""What the worker asks of Postgres: how many statements for a mail, and what rows that share one have to do with each
other.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import psycopg2.extensions
import pytest

from relay.aws.sqs_receiver import QueueReceiver, Received
from relay.core.errors import PostgresUnavailable
from relay.core.spellings import mailbox_of
from relay.delivery.deliverer import Deliverer
from relay.delivery.dispatcher import Dispatcher
from relay.delivery.handovers import Handovers
from relay.delivery.large_mails import LargeMails
from relay.delivery.outcome import Sent
from relay.delivery.provider import Handover
from relay.delivery.row_source import Turns
from relay.delivery.unclear import LeftBehind, Unclear
from relay.postgres import sending_facts
from relay.postgres.database import Database
from relay.postgres.failed_rows import FailedRow
from relay.postgres.left_rows import LeftRows
from relay.postgres.outgoing import Outgoing
from relay.postgres.row_contents import RowContents
from relay.postgres.sending_facts import Facts, MailAsked, SendingDomain
from relay.postgres.sent_rows import Event
from relay.postgres.waiting import PLANNER, WaitingRows
from relay.redis.claim_states import ClaimStates
from relay.redis.link import RedisLink
from scripts.database import create_webhook

Query = Callable[..., list[tuple[Any, ...]]]
IN_FLIGHT = 50
MAILS = 200


class Counted(Database):
    """A database that counts the statements that are sent to it, by their first words."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, statement_seconds=4.5, idle_limit=5, **options)
        self.statements: Counter[str] = Counter()

    def connect(
        self, deadline: float, *, statement_seconds: float | None = None, lock_seconds: float | None = None
    ) -> Any:
        statements = self.statements

        class Counting(psycopg2.extensions.cursor):
            def execute(self, query: Any, vars: Any = None) -> None:
                for statement in str(query).split("; "):
                    statements[" ".join(statement.split()[:6])] += 1
                super().execute(query, vars)

        connection = super().connect(deadline, statement_seconds=statement_seconds, lock_seconds=lock_seconds)
        connection.cursor_factory = Counting
        return connection


@pytest.fixture
def counted(postgres_url: str, green_psycopg: None) -> Iterator[Counted]:
    database = Counted(postgres_url, switched_off=PLANNER)
    yield database
    database.close()


@pytest.fixture
def asking(counted: Counted) -> Iterator[Outgoing]:
    outgoing = Outgoing(counted)
    yield outgoing
    outgoing.close()


class Provider:
    """Takes every mail after a while; a stand-in, since nothing is patched here and a real call would stop all."""

    name = "ses"
    region = None

    def __init__(self) -> None:
        self.mails: list[str] = []
        self.most = self.at_a_time = 0

    def send(self, handover: Handover) -> Sent:
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        gevent.sleep(0.02)
        self.at_a_time -= 1
        self.mails.append(handover.email_id)
        return Sent(f"id of {handover.email_id}")

    def close(self) -> None: ...


class Jobs(QueueReceiver):
    """A queue with a job for each of these; a stand-in for the same reason."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.left = list(ids)
        self.deleted: list[str] = []

    @property
    def fifo(self) -> bool:
        return False

    def receive(self, most: int, *, visibility_seconds: int, wait_seconds: int = 0) -> list[Received]:
        gevent.sleep(0.001)
        taken, self.left = self.left[:most], self.left[most:]
        return [
            Received(receipt=email_id, body=f'{{"type": "email.send", "emailId": "{email_id}"}}') for email_id in taken
        ]

    def delete(self, received: Received) -> None:
        self.deleted.append(received.receipt)

    def extend(self, received: Received, seconds: int) -> None: ...


def add(query: Query, count: int, user: str = "user") -> list[str]:
    """So many queued rows."""
    rows = query(
        'INSERT INTO emails (id, "from", "to", subject, html, text, user_id)'
        " SELECT gen_random_uuid(), 'Ann <ann@example.com>', '[\"to@x.example\"]', 'Hello', '', 'Hi', %s"
        " FROM generate_series(1, %s) RETURNING id::text",
        user,
        count,
    )
    return [email_id for (email_id,) in rows]


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        gevent.sleep(0.02)


def dispatcher_of(
    database: Database, outgoing: Outgoing, provider: Provider, jobs: Jobs | None, *, folder: Path, places: int
) -> Dispatcher:
    """The whole of a worker, without Redis. `places`: mails at a time."""
    left, states = LeftRows(database), ClaimStates(RedisLink(None, verify_tls=True, timeout=1.0, pause=1.0))
    deliverer = Deliverer(
        outgoing,
        provider,
        max_attempts=3,
        records_sent=lambda _: True,
        tracking=None,
        large_mails=LargeMails(RowContents(database), str(folder), fetches=4),
        handovers=Handovers(states, outgoing, left, service="test", index=0, provider="ses"),
        unclear=Unclear(left, "again"),
        pause=lambda _: None,
    )
    return Dispatcher(
        outgoing,
        WaitingRows(database),
        deliverer,
        jobs,
        left_behind=LeftBehind(left, states),
        concurrency=places,
        turns=Turns(),
    )


@pytest.mark.parametrize("mode", ["postgres", "queue"])
def test_a_mail_takes_three_statements_at_most(
    counted: Counted, asking: Outgoing, query: Query, tmp_path: Path, mode: str
) -> None:
    """With fifty mails on their way, and with all that is asked beside: looks for rows and scans."""
    ids = add(query, MAILS)
    provider = Provider()
    jobs = Jobs(ids) if mode == "queue" else None
    dispatcher = dispatcher_of(counted, asking, provider, jobs, folder=tmp_path, places=IN_FLIGHT)
    dispatcher.start()
    until(lambda: len(provider.mails) == MAILS)
    assert dispatcher.drain(30.0) == 0
    assert sorted(provider.mails) == sorted(ids)
    assert query("SELECT status, count(*) FROM emails GROUP BY 1") == [("sent", MAILS)]
    assert query("SELECT count(*) FROM email_events WHERE type = 'sent'") == [(MAILS,)]
    assert provider.most > 10
    assert sum(counted.statements.values()) <= 3 * MAILS, counted.statements
    if jobs is not None:
        until(lambda: len(jobs.deleted) == MAILS)


def test_fifty_that_are_sent_at_once_are_one_statement(counted: Counted, asking: Outgoing, query: Query) -> None:
    ids = add(query, IN_FLIGHT)
    assert len(asking.claim(ids)) == IN_FLIGHT
    asking.facts(MailAsked("user", names=["example.com"], mailboxes=["to@x.example"]))
    counted.statements.clear()
    together = [gevent.spawn(asking.sent, email_id, None) for email_id in ids]
    together += [
        gevent.spawn(asking.facts, MailAsked(f"user {n}", names=["example.com"], mailboxes=[f"{n}@x.example"]))
        for n in range(IN_FLIGHT)
    ]
    gevent.joinall(together, timeout=30, raise_error=True)
    assert query("SELECT status, count(*) FROM emails GROUP BY 1") == [("sent", IN_FLIGHT)]
    # The settings of a new connection beside one statement of each kind.
    assert sum(counted.statements.values()) <= 5, counted.statements


# What rows that share a statement have to do with each other: nothing.


@contextmanager
def held(url: str, statement: str, *values: Any) -> Iterator[None]:
    """Another open transaction, which is rolled back in the end."""
    connection = psycopg2.connect(url)
    try:
        connection.cursor().execute(statement, values)
        yield
    finally:
        connection.rollback()
        connection.close()


def state(query: Query, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """What is recorded of each row: status, whether it has a time, its events and their webhooks' deliveries."""
    return [
        query(
            "SELECT e.status, e.sent_at IS NOT NULL, e.provider_last_error_code,"
            " array(SELECT v.type || ' ' || v.payload::text FROM email_events v WHERE v.email_id = e.id ORDER BY 1),"
            " (SELECT count(*) FROM email_events v JOIN webhook_deliveries d ON d.event_id = v.id"
            "   WHERE v.email_id = e.id)"
            " FROM emails e WHERE e.id = %s",
            email_id,
        )[0]
        for email_id in ids
    ]


STATUSES = ("processing", "queued", "delivered", "bounced", "complained", "sent", "failed", "canceled", "suppressed")


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_one_statement_are_recorded_as_each_alone(
    asking: Outgoing, query: Query, postgres_url: str, seed: int
) -> None:
    """Rows of every status, some with an event that is known, some locked, with webhooks and without."""
    chance = random.Random(seed)
    for user, types in (("one", ["email.sent"]), ("two", ["email.sent", "email.failed"]), ("none", [])):
        for _ in range(2):
            create_webhook(postgres_url, *types, user_id=user)
    pairs = []
    for _ in range(12):
        ids = add(query, 2, chance.choice(["one", "two", "none", "nobody"]))
        status, error = chance.choice(STATUSES), chance.choice([None, "Code"])
        known, silent = chance.random() < 0.2, chance.random() < 0.2
        for email_id in ids:
            query("UPDATE emails SET status = %s, provider_last_error_code = %s WHERE id = %s", status, error, email_id)
            if known:
                query(
                    "INSERT INTO email_events (id, source_id, type, payload) VALUES (gen_random_uuid(), %s, 'x', '{}')",
                    f"provider-sent:{email_id}",
                )
        pairs.append((*ids, silent))

    def event(email_id: str, *, silent: bool) -> Event | None:
        text = {"text": "a 'quoted' \\ \x00 {\u20ac}"}
        return None if silent else Event("sent", f"provider-sent:{email_id}", text)

    for _, alone, silent in pairs:
        asking.sent(alone, event(alone, silent=silent))
    locked = [together for together, _, _ in pairs if chance.random() < 0.3]
    with held(postgres_url, "SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE", locked):
        asked = {
            together: gevent.spawn(asking.sent, together, event(together, silent=silent))
            for together, _, silent in pairs
        }
        # No statement waits for a row that another has locked.
        gevent.joinall([asked[together] for together, _, _ in pairs if together not in locked], timeout=4.0)
        assert [
            together for together, _, _ in pairs if together not in locked and not asked[together].successful()
        ] == []
    gevent.joinall(list(asked.values()), timeout=20, raise_error=True)
    assert state(query, [together for together, _, _ in pairs]) == state(query, [alone for _, alone, _ in pairs])


def failed(asking: Outgoing, email_id: str, *, final: bool) -> None:
    kind = "failed" if final else "delayed"
    event = Event(kind, f"{kind}:{email_id}", {"text": "a 'quoted' \\ \x00 {\u20ac}"})
    code, message = "Code" * 100, "a\x00b" * 500
    attempt, seconds = (3, None) if final else (2, 600.0)
    mark = asking.mark(email_id)
    asking.ended(FailedRow(email_id, mark, event, attempt=attempt, seconds=seconds, code=code, message=message))


def failure(query: Query, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """What is recorded of each row's failure beside its state."""
    return [
        query(
            "SELECT provider_retry_count, provider_next_retry_at > now() + interval '9 minutes',"
            " provider_dead_lettered_at IS NOT NULL, provider_last_error_message FROM emails WHERE id = %s",
            email_id,
        )[0]
        for email_id in ids
    ]


@pytest.mark.parametrize("seed", range(2))
def test_failures_of_one_statement_are_recorded_as_each_alone(
    asking: Outgoing, query: Query, postgres_url: str, seed: int
) -> None:
    """Rows that are claimed by this process, or no longer; some with an event that is known, some locked."""
    chance = random.Random(seed)
    create_webhook(postgres_url, "email.delayed", user_id="one")
    create_webhook(postgres_url, "email.delayed", "email.failed", user_id="two")
    pairs, locked = [], []
    for number in range(12):
        ids = add(query, 2, chance.choice(["one", "two", "nobody"]))
        assert len(asking.claim(ids)) == 2
        final, over, known = number % 3 == 0, number % 4 == 3, chance.random() < 0.3
        for email_id in ids:
            if over:
                query("UPDATE emails SET provider_last_attempted_at = now() WHERE id = %s", email_id)
            if known:
                query(
                    "INSERT INTO email_events (id, source_id, type, payload) VALUES (gen_random_uuid(), %s, 'x', '{}')",
                    f"{'failed' if final else 'delayed'}:{email_id}",
                )
        pairs.append((*ids, final))
        # What is no longer claimed is not waited for.
        locked += ids[:1] if not over and chance.random() < 0.3 else []
    for _, alone, final in pairs:
        failed(asking, alone, final=final)
    sent = add(query, 3)
    asking.claim(sent)
    with held(postgres_url, "SELECT FROM emails WHERE id = ANY (%s::uuid[]) FOR UPDATE", locked):
        asked = {together: gevent.spawn(failed, asking, together, final=final) for together, _, final in pairs}
        others = [gevent.spawn(asking.sent, email_id, None) for email_id in sent]
        free = [asked[together] for together, _, _ in pairs if together not in locked]
        gevent.joinall([*free, *others], timeout=4.0)
        assert all(each.successful() for each in (*free, *others))
        assert not any(asked[together].dead for together in locked)
    gevent.joinall(list(asked.values()), timeout=20, raise_error=True)
    with_others, by_themselves = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert state(query, with_others) == state(query, by_themselves)
    assert failure(query, with_others) == failure(query, by_themselves)
    assert {row[0] for row in state(query, with_others)} == {"processing", "queued", "failed"}
    assert [row[0] for row in state(query, sent)] == ["sent"] * 3


def test_fifty_that_fail_at_once_are_two_statements(counted: Counted, asking: Outgoing, query: Query) -> None:
    ids = add(query, IN_FLIGHT)
    assert len(asking.claim(ids)) == IN_FLIGHT
    asking.sent(ids[0], None)
    counted.statements.clear()
    ended = [gevent.spawn(failed, asking, email_id, final=number % 2 == 0) for number, email_id in enumerate(ids)]
    gevent.joinall(ended, timeout=30, raise_error=True)
    assert query("SELECT status, count(*) FROM emails GROUP BY 1 ORDER BY 1") == [
        ("failed", IN_FLIGHT // 2 - 1),
        ("queued", IN_FLIGHT // 2),
        ("sent", 1),
    ]
    # The one that is sent is no longer claimed: it is looked for once more by itself.
    assert sum(counted.statements.values()) <= 3, counted.statements


@pytest.mark.parametrize(
    "bad",
    [
        Event("sent", "x" * 300, {}),
        Event("sent" * 20, "a type that is too long", {}),
        Event("sent", "no JSON", {"text": "\ud800"}),
        Event("sent", "no JSON either", {"text": object()}),
        Event("sent", "a NUL \x00", {}),
    ],
)
def test_a_row_that_can_not_be_recorded_stops_no_other(asking: Outgoing, query: Query, bad: Event) -> None:
    ids = add(query, 6)
    asking.claim(ids)
    asked = [
        gevent.spawn(asking.sent, email_id, bad if number == 2 else Event("sent", f"s:{email_id}", {}))
        for number, email_id in enumerate(ids)
    ]
    gevent.joinall(asked, timeout=30)
    assert [each.successful() for each in asked] == [number != 2 for number in range(6)]
    assert [row[0] for row in state(query, ids)] == ["sent", "sent", "processing", "sent", "sent", "sent"]


def test_a_lock_on_the_webhook_of_one_user_holds_up_no_other_user(
    asking: Outgoing, query: Query, postgres_url: str
) -> None:
    create_webhook(postgres_url, "email.sent", user_id="slow")
    slow, others = add(query, 2, "slow"), add(query, 4, "other")
    asking.claim([*slow, *others])
    with held(postgres_url, "DELETE FROM webhooks"):
        asked = {
            email_id: gevent.spawn(asking.sent, email_id, Event("sent", f"s:{email_id}", {}))
            for email_id in (*slow, *others)
        }
        gevent.joinall([asked[email_id] for email_id in others], timeout=4.0)
        assert all(asked[email_id].successful() for email_id in others)
        assert not any(asked[email_id].dead for email_id in slow)
    gevent.joinall(list(asked.values()), timeout=20, raise_error=True)
    assert [row[4] for row in state(query, [*slow, *others])] == [1, 1, 0, 0, 0, 0]


def test_claims_for_jobs_share_a_statement_and_wait_for_their_own_locks_alone(
    counted: Counted, asking: Outgoing, query: Query, postgres_url: str
) -> None:
    """OpenSend publishes a job before its own change of the row is committed; a job may come twice."""
    ids = add(query, 8)
    query("UPDATE emails SET status = 'canceled' WHERE id = %s", ids[1])
    counted.statements.clear()
    with held(postgres_url, "SELECT FROM emails WHERE id = %s FOR UPDATE", ids[0]):
        asked = [gevent.spawn(asking.claim_one, email_id) for email_id in (*ids, ids[2].upper(), str(uuid.uuid4()))]
        gevent.joinall(asked[1:], timeout=4.0)
        assert [each.successful() for each in asked] == [False] + [True] * 9
    gevent.joinall(asked, timeout=20, raise_error=True)
    claimed = [[str(row[0]) for row in each.value] for each in asked]
    assert claimed[2:8] == [[email_id] for email_id in ids[2:]]
    assert [claimed[0], claimed[1], claimed[8], claimed[9]] == [[ids[0]], [], [], []]
    # One for all, and one more for the one that is locked; the others that it left may not leave.
    assert counted.statements["WITH free AS ( SELECT e.id"] == 2


class Explained:
    """A cursor that has what it is asked explained, by Postgres as it carried it out."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.nodes: list[dict[str, Any]] = []

    def execute(self, statement: str, values: dict[str, Any]) -> None:
        self._cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
        waiting = [self._cursor.fetchone()[0][0]["Plan"]]
        while waiting:
            node = waiting.pop()
            self.nodes.append(node)
            waiting += node.get("Plans", [])

    def fetchall(self) -> list[Any]:
        return []


@pytest.mark.parametrize("switched_off", [(), PLANNER])
def test_domains_of_all_users_are_gone_through_once_for_all_mails_of_a_statement(
    postgres_url: str, query: Query, switched_off: Sequence[str]
) -> None:
    """The contract names no index for them: once for each mail takes seconds where users have many."""
    query(
        "INSERT INTO domains (id, name, status, region, user_id, created_at)"
        " SELECT gen_random_uuid(), 'd' || n || '.example', 'x', 'r', 'user ' || mod(n, 100), now()"
        "   FROM generate_series(1, 3000) n"
    )
    asked = [MailAsked(f"user {n % 100}", names=[f"d{n}.example"], mailboxes=[f"{n}@x.example"]) for n in range(50)]
    with psycopg2.connect(postgres_url) as connection, connection.cursor() as cursor:
        for name in switched_off:
            cursor.execute(f"SET {name} = off")
        sending_facts.find(explained := Explained(cursor), asked)  # type: ignore[arg-type]  # what it needs of one
    assert [node["Actual Loops"] for node in explained.nodes if node.get("Relation Name") == "domains"] == [1]


@pytest.mark.parametrize("seed", range(3))
def test_facts_of_many_mails_are_those_of_each(asking: Outgoing, query: Query, seed: int) -> None:
    """Domains in either form, several of one name, other users'; suppressions however they are spelled."""
    chance = random.Random(seed)
    users, names = ["a", "b", "c'\\"], ["example.com", "xn--bcher-kva.example", "bücher.example", "other.example"]
    for number in range(8):
        query(
            "INSERT INTO domains (id, name, status, region, user_id, created_at)"
            " VALUES (gen_random_uuid(), %s, 'x', %s, %s, now() + make_interval(secs => %s))",
            chance.choice([str.upper, str.lower])(chance.choice(names)),
            f"region-{number}",
            chance.choice(users),
            chance.randrange(1000) + number / 100,
        )
    mailboxes = ["to@x.example", "o'b{}@x.example", "to@xn--bcher-kva.example", '"a b"@x.example', "cc@y.example"]
    spelled = [*mailboxes, "to@bücher.example", "to@x.example."]
    for address in chance.sample(spelled, 4):
        query(
            "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, %s, %s, now(), now())",
            chance.choice(users),
            address,
            f"reason of {address}",
        )
    pair = names[1:3]
    asked = [
        MailAsked(
            chance.choice([*users, "nobody"]),
            names=chance.choice([[names[0]], pair, [names[3]], []]),
            mailboxes=chance.sample(mailboxes, chance.randrange(len(mailboxes) + 1)),
        )
        for _ in range(30)
    ]
    together = [gevent.spawn(asking.facts, each) for each in asked]
    gevent.joinall(together, timeout=30, raise_error=True)
    assert [each.value for each in together] == [expected(query, each) for each in asked]


def expected(query: Query, asked: MailAsked) -> Facts:
    """The facts of one mail, read plainly."""
    domains = query(
        "SELECT id::text, region, ses_configuration_set_name, track_clicks, track_opens, tracking_subdomain, name"
        " FROM domains WHERE user_id = %s AND lower(name) = ANY (%s) ORDER BY created_at LIMIT 1",
        asked.user_id,
        list(asked.names),
    )

    suppressed = query("SELECT email, reason FROM email_suppressions WHERE user_id = %s", asked.user_id)
    reasons = {mailbox_of(email): reason for email, reason in suppressed}
    return Facts(
        SendingDomain(*domains[0]) if domains else None,
        {mailbox: reasons[mailbox] for mailbox in asked.mailboxes if mailbox in reasons},
    )


def test_a_database_that_is_away_is_said_to_each(asking: Outgoing, counted: Counted, query: Query) -> None:
    ids = add(query, 5)
    asking.claim(ids)
    counted.close()
    asked = [gevent.spawn(asking.sent, email_id, None) for email_id in ids]
    asked += [gevent.spawn(asking.facts, MailAsked("u", names=["x"], mailboxes=[])) for _ in range(3)]
    gevent.joinall(asked, timeout=30)
    assert [type(each.exception) for each in asked] == [PostgresUnavailable] * 8
