"""What a message to many costs the Postgres session that stores it: what it costs to one, however many there are."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from relay.core.records import EmailRow, StoredAttachment
from relay.postgres import own_transaction
from relay.postgres.group_commit import Stored
from relay.postgres.pending_message import PendingMessage
from relay.postgres.store import Store
from scripts.database import apply_schema, query
from scripts.services import Postgres

MakeRow = Callable[..., EmailRow]

#: What many recipients may cost beyond one, in octets; and what is stored for each fifty.
MORE = 20_000_000
CONTENTS = {
    "an attachment": {"attachments": (StoredAttachment("a.bin", os.urandom(2_500_000).hex()),)},
    "html": {"html": os.urandom(2_500_000).hex()},
    "text that compresses": {"text": "All work and no play makes Jack a dull boy.\n" * 100_000},
    "text to be escaped": {"text": "\x01" * 2_500_000},
}


@pytest.fixture(scope="module")
def lean_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With so few shared buffers that they count for nothing beside what a session has for itself."""
    settings = {"shared_buffers": "8MB"}
    with Postgres(tmp_path_factory.mktemp("lean"), durable=False, settings=settings) as server:
        apply_schema(server.url())
        yield server.url()


def peak(url: str, rows: list[EmailRow]) -> int:
    """Octets of memory that a fresh session had at most, when it had stored the rows as the relay does."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
            deadline = time.monotonic() + 200
            own_transaction._begin(cursor, deadline)
            message = PendingMessage(rows, [row.to[0] for row in rows], deadline)
            assert own_transaction._insert_together(cursor, message)
        (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(kilobytes) * 1024
    finally:
        connection.close()


@pytest.mark.parametrize("content", CONTENTS)
def test_many_rows_take_no_more_memory_than_one(lean_postgres: str, make_row: MakeRow, content: str) -> None:
    columns: dict[str, Any] = CONTENTS[content]
    one = peak(lean_postgres, [make_row(**columns)])
    many = [make_row(to=(f"{number}@x.example",), **columns) for number in range(20)]
    assert peak(lean_postgres, many) - one < MORE
    stored = query(
        lean_postgres,
        "SELECT DISTINCT html, text, attachments FROM emails WHERE id = ANY (%s::uuid[])",
        ([row.id for row in many],),
    )
    assert len(stored) == 1, "all rows say the same"


def test_a_document_goes_over_the_wire_once(
    postgres_url: str, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(postgres_url, deadline=100.0)  # a busy machine must not make it send a second time
    sent = 0

    def counted(execute: Callable[..., int]) -> Callable[..., int]:
        def execute_and_count(cursor: Any, *arguments: Any) -> int:
            nonlocal sent
            count = execute(cursor, *arguments)
            sent += len(cursor.query)
            return count

        return execute_and_count

    for name in ("insert", "insert_statement", "copy"):
        monkeypatch.setattr(own_transaction, name, counted(getattr(own_transaction, name)))
    people = [f"{number}@x.example" for number in range(1000)]
    rows = [make_row(to=tuple(people[start : start + 50]), text="x" * 3_000_000) for start in range(0, 1000, 50)]
    assert store.insert(rows, people) == Stored()
    assert 3_000_000 < sent < 3_200_000
    store.close()
