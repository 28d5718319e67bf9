"""`scripts/trial_key.sql`, which compose.yaml mounts, makes a key that the relay knows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psycopg2

from relay.postgres.store import Store

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "trial_key.sql"


def test_the_printed_key_is_known_and_stored_as_a_hash(postgres_url: str, store: Store) -> None:
    tokens = []
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for _ in range(2):
            cursor.execute(SCRIPT.read_text())
            ((token,),) = cursor.fetchall()
            tokens.append(token)
            key = store.find_api_key(hashlib.sha256(token.encode()).hexdigest())
            assert key is not None
        cursor.execute("SELECT * FROM api_keys")
        stored = repr(cursor.fetchall())
    connection.close()
    assert len(set(tokens)) == 2
    assert all(len(token) > 40 and token not in stored for token in tokens)
