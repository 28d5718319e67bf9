"""Whatever one user's mail waits for or takes, the others' mail goes on beside it.

Each kind of trouble is a real one of a real Postgres: an open transaction, a trigger, a look-up that is slow
for one user. It lasts until the others are done, so what is seen is who waits for whom, not how fast the machine is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import psycopg2
import pytest

from relay.core.errors import Unavailable
from relay.core.records import EmailRow, StoredAttachment
from relay.postgres.group_commit import Outcome, Repeated, Stored
from relay.postgres.store import Store
from scripts.database import create_webhook
from tests.support.user_troubles import (
    SLOW,
    TROUBLES,
    hold_keys,
    many_keys_in_an_open_transaction,
    open_transaction,
    slow_suppressions,
    trigger,
)

MakeRow = Callable[..., EmailRow]
Query = Callable[..., list[dict[str, Any]]]

OTHERS = [f"user-{number}" for number in range(12)]


def send(store: Store, row: EmailRow) -> Outcome | Unavailable:
    try:
        return store.insert([row], [address.lower() for address in row.recipients])
    except Unavailable as unavailable:
        return unavailable


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one after the other"])
def test_other_users_mail_goes_on(
    trouble: Any, together: bool, make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    """One user's mail is in trouble from before the first of the others until after the last: none waits for its end.

    The store has so much time that no limit of a message ends the wait.
    """
    store = Store(postgres_url, deadline=30.0)
    with trouble(postgres_url, query):
        slow = [
            gevent.spawn(send, store, make_row(user_id=SLOW, idempotency_key=f"key-{number}"))
            for number in range(30 if trouble is many_keys_in_an_open_transaction else 1)
        ]
        if not together:
            gevent.sleep(0.3)
        answers: list[Outcome | Unavailable] = []

        def send_some(user_id: str) -> None:
            for _ in range(3):
                answers.append(send(store, make_row(user_id=user_id)))

        others = [gevent.spawn(send_some, user_id) for user_id in OTHERS]
        burst = [gevent.spawn(send, store, make_row(user_id="busy")) for _ in range(100)]
        gevent.joinall([*others, *burst], raise_error=True, timeout=60)
        assert not any(greenlet.ready() for greenlet in slow), "the trouble has to last for longer than the others need"
    assert Counter(type(answer) for answer in answers) == {Stored: 36}
    assert Counter(type(greenlet.value) for greenlet in burst) == {Stored: 100}
    gevent.joinall(slow, raise_error=True, timeout=60)
    store.close()


def test_the_culprit_is_stored_once_its_way_is_free(
    store: Store, make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    with open_transaction(postgres_url, hold_keys("key-0")):
        waiting = gevent.spawn(send, store, make_row(user_id=SLOW, idempotency_key="key-0"))
        gevent.sleep(1.0)
        assert not waiting.ready()
    assert waiting.get(timeout=30) == Stored()
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 1


def test_the_user_that_causes_a_lock_gets_4xx_while_it_lasts(
    store: Store, make_row: MakeRow, postgres_url: str
) -> None:
    with open_transaction(postgres_url, hold_keys("key-0")):
        answer = send(store, make_row(user_id=SLOW, idempotency_key="key-0"))
    assert isinstance(answer, Unavailable)
    assert not answer.unclear, "nothing was stored, and whoever comes again need not wait for a lease"


def test_the_culprit_is_a_repeat_when_the_other_one_commits(
    store: Store, make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    connection = psycopg2.connect(postgres_url)
    with connection.cursor() as cursor:
        cursor.execute(hold_keys("key-0"))
    waiting = gevent.spawn(send, store, make_row(user_id=SLOW, idempotency_key="key-0"))
    gevent.sleep(0.5)
    connection.commit()
    connection.close()
    assert waiting.get(timeout=30) == Repeated(query("SELECT id FROM emails")[0]["id"])


def test_the_culprits_other_mails_go_on_too(store: Store, make_row: MakeRow, postgres_url: str) -> None:
    with open_transaction(postgres_url, hold_keys(*[f"key-{number}" for number in range(20)])):
        barred = [gevent.spawn(send, store, make_row(user_id=SLOW, idempotency_key=f"key-{n}")) for n in range(20)]
        gevent.sleep(0.3)
        free = [gevent.spawn(send, store, make_row(user_id=SLOW)) for _ in range(10)]
        gevent.joinall(free, raise_error=True, timeout=60)
        assert {type(greenlet.value) for greenlet in free} == {Stored}
    gevent.joinall(barred, raise_error=True, timeout=60)


def test_a_user_who_holds_up_others_does_so_seldom(
    store: Store, make_row: MakeRow, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: the statements that were given up. Without a memory each mail of that user would spoil one."""
    given_up = 0
    part = store._commits._part

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal given_up
        given_up += 1
        part(*arguments, **options)

    monkeypatch.setattr(store._commits, "_part", count)
    with open_transaction(postgres_url, hold_keys(*[f"key-{number}" for number in range(40)])):
        barred = []
        for number in range(40):
            barred.append(gevent.spawn(send, store, make_row(user_id=SLOW, idempotency_key=f"key-{number}")))
            beside = [gevent.spawn(send, store, make_row(user_id=user_id)) for user_id in OTHERS]
            gevent.joinall(beside, raise_error=True, timeout=60)
            assert {type(greenlet.value) for greenlet in beside} == {Stored}
    assert given_up <= 10
    gevent.joinall(barred, raise_error=True, timeout=60)


def test_a_locked_table_holds_up_all_and_loses_none(
    store: Store, make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    """As a migration does it: then no user is the cause, and all are stored as soon as it is over."""
    assert send(store, make_row()) == Stored()
    with open_transaction(postgres_url, "LOCK TABLE emails IN SHARE MODE"):
        waiting = [gevent.spawn(send, store, make_row(user_id=user_id)) for user_id in OTHERS * 5]
        gevent.sleep(1.5)
        assert not any(greenlet.ready() for greenlet in waiting)
    gevent.joinall(waiting, raise_error=True, timeout=60)
    assert {type(greenlet.value) for greenlet in waiting} == {Stored}
    assert query("SELECT count(*) AS n FROM emails")[0]["n"] == 61


def test_a_caller_behind_a_slow_one_does_not_wait_for_the_next(store: Store, make_row: MakeRow, query: Query) -> None:
    """The statement is slow, but not enough to be given up; the second writer has to be woken by time."""
    trigger(query, "PERFORM pg_sleep(0.5)")
    assert send(store, make_row()) == Stored()
    for _ in range(3):
        slow = gevent.spawn(send, store, make_row(user_id=SLOW))
        gevent.sleep(0.01)
        behind = gevent.spawn(send, store, make_row())
        assert gevent.wait([slow, behind], count=1) == [behind]
        assert slow.get(timeout=30) == behind.get() == Stored()
        store._commits._slow_users._noted.clear()


def test_a_large_message_of_many_rows_holds_up_no_other_user(store: Store, make_row: MakeRow, query: Query) -> None:
    # Octets alone are with Postgres within 0.2 s where it is fast.
    trigger(query, "PERFORM pg_sleep(0.2)")
    attachment = StoredAttachment("a.bin", "QUJDRA==" * 1_500_000)
    rows = [make_row(user_id=SLOW, to=(f"{n}@x.example",), attachments=(attachment,)) for n in range(15)]
    large = gevent.spawn(store.insert, rows, [row.to[0] for row in rows])
    gevent.sleep(0.2)
    answers = [send(store, make_row(user_id=user_id)) for user_id in OTHERS * 2]
    assert {type(answer) for answer in answers} == {Stored}
    assert not large.ready()
    assert large.get(timeout=120) == Stored()


def test_look_ups_of_others_go_on_beside_a_users_slow_ones(
    store: Store, query: Query, make_api_key: Callable[..., Any]
) -> None:
    """AUTH, suppressions and repeats share a pool of connections, of which no user gets all."""
    make_api_key()
    (key,) = query("SELECT token_hash FROM api_keys")
    slow_suppressions(query)

    def look_up() -> object:
        try:
            return store.find_suppressions(SLOW, ["a@x.example"])
        except Unavailable as unavailable:
            return unavailable

    slow = [gevent.spawn(look_up) for _ in range(20)]
    gevent.sleep(0.2)
    for user_id in OTHERS[:4]:
        assert store.find_suppressions(user_id, ["a@x.example"]) == {}
        assert store.find_api_key(key["token_hash"]) is not None
    assert not any(greenlet.ready() for greenlet in slow)
    gevent.joinall(slow, raise_error=True, timeout=60)


def test_a_webhook_that_somebody_changes_does_not_stop_refusals(store: Store, query: Query, postgres_url: str) -> None:
    """Its user's refusals wait for the row; they give up before they take the time of all other look-ups."""
    create_webhook(postgres_url, "email.suppressed", user_id=SLOW)
    with open_transaction(postgres_url, "SELECT 1 FROM webhooks FOR UPDATE"):
        slow = [gevent.spawn(store.record_suppressed, SLOW, {}) for _ in range(10)]
        gevent.sleep(0.1)
        store.record_suppressed(OTHERS[0], {})
        assert store.find_suppressions(OTHERS[0], ["a@x.example"]) == {}
        gevent.joinall(slow, timeout=60)
        assert all(isinstance(greenlet.exception, Unavailable) for greenlet in slow)
    store.record_suppressed(SLOW, {})
    assert query("SELECT count(*) AS n FROM webhook_deliveries")[0]["n"] == 1


def test_an_old_key_whose_row_is_in_other_hands_is_not_waited_for(
    store: Store, make_row: MakeRow, query: Query, postgres_url: str
) -> None:
    assert send(store, make_row(user_id=SLOW, idempotency_key="k")) == Stored()
    query("UPDATE emails SET created_at = now() - interval '25 hours'")
    with open_transaction(postgres_url, "SELECT 1 FROM emails FOR UPDATE"):
        waiting = [gevent.spawn(send, store, make_row(user_id=SLOW, idempotency_key="k")) for _ in range(10)]
        gevent.sleep(0.1)
        assert store.find_suppressions(OTHERS[0], ["a@x.example"]) == {}
        gevent.joinall(waiting, raise_error=True, timeout=60)
        assert {type(greenlet.value) for greenlet in waiting} <= {Unavailable} | set(Unavailable.__subclasses__())
    assert send(store, make_row(user_id=SLOW, idempotency_key="k")) == Stored()
