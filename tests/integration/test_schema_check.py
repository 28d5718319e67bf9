"""What `relay.postgres.schema_check` asks for is what the relay's statements need: a role with that alone can do it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import pytest

from relay.core.records import EmailRow
from relay.postgres import schema_check
from relay.postgres.group_commit import Repeated, Stored, Suppressed
from relay.postgres.store import Store
from scripts.database import NewApiKey, create_webhook, execute

ROW = EmailRow(
    id="",
    user_id="",
    sender="a@example.com",
    to=("b@example.com",),
    cc=(),
    bcc=(),
    reply_to=(),
    subject="s",
    html="",
    text="t",
    headers={},
    attachments=(),
    tags=(),
    idempotency_key="once",
)


@pytest.fixture
def sparing_url(postgres_url: str) -> Iterator[str]:
    """The test's database for a role that may do what `relay.postgres.schema_check` lists, and nothing else."""
    name = f"sparing_{uuid.uuid4().hex}"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    for table, columns in schema_check.TABLES.items():
        for letter, privilege in (("S", "SELECT"), ("I", "INSERT"), ("U", "UPDATE")):
            names = ", ".join(f'"{column}"' for column, wanted in columns.items() if letter in wanted.uses)
            if names:
                execute(postgres_url, f"GRANT {privilege} ({names}) ON {table} TO {name}")
    parts = urlsplit(postgres_url)
    yield urlunsplit(parts._replace(netloc=f"{name}:{name}@{parts.hostname}:{parts.port}"))
    execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_with_just_these_privileges_can_do_everything(
    sparing_url: str, postgres_url: str, make_api_key: Callable[..., NewApiKey]
) -> None:
    key = make_api_key()
    execute(
        postgres_url,
        "INSERT INTO email_suppressions (id, user_id, email, reason)"
        " VALUES (gen_random_uuid(), %s, 'no@example.com', 'bounced')",
        (key.user_id,),
    )
    create_webhook(postgres_url, "email.suppressed", user_id=key.user_id)
    row = replace(ROW, id=str(uuid.uuid4()), user_id=key.user_id)
    again = replace(row, id=str(uuid.uuid4()))
    suppressed = replace(row, id=str(uuid.uuid4()), idempotency_key=None, to=("no@example.com",))
    store = Store(sparing_url)
    try:
        assert store.find_api_key("0" * 64) is None
        assert store.find_suppressions(key.user_id, ["no@example.com"]) == {"no@example.com": "bounced"}
        assert isinstance(store.insert([row], ["b@example.com"]), Stored)
        assert isinstance(store.insert([again], ["b@example.com"]), Repeated)
        assert isinstance(store.insert([suppressed], ["no@example.com"]), Suppressed)
        parts = store.find_parts(key.user_id, row.idempotency_key or "", row)
        assert parts is not None
        assert (parts.first_id, parts.same_message) == (row.id, True)
        assert store.rows_exist([row.id, again.id]) == {row.id}
        assert store.queued([row.id]) == {row.id}
        assert [found for _, found in store.overdue(timedelta(seconds=-60), 10)] == [row.id]
        store.touch_api_keys([key.id])
        store.record_suppressed(key.user_id, {"reason": "recipient_suppressed"})
    finally:
        store.close()


def test_the_schema_for_development_has_no_problems(postgres_url: str) -> None:
    connection = psycopg2.connect(postgres_url)
    try:
        with connection.cursor() as cursor:
            assert list(schema_check.problems(cursor)) == []
    finally:
        connection.close()
