"""Relays for mail clients to send through."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from scripts.database import create_api_key, create_database, drop_database
from scripts.services import Postgres, Valkey
from tests.clients.door import Door, door


@pytest.fixture(scope="module")
def doors(
    postgres_server: Postgres, schema_template: str, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[bool, Door]]:
    """By whether they have a certificate: two relays on one database, in polling mode."""
    name = f"clients_{uuid.uuid4().hex}"
    database_url = create_database(postgres_server.url(), name, schema_template)
    key = create_api_key(database_url)
    open_door, secured = (
        door(tmp_path_factory.mktemp("door"), database_url, valkey_server.url, key, secured=secured)
        for secured in (False, True)
    )
    with open_door.relay, secured.relay:
        yield {False: open_door, True: secured}
    drop_database(postgres_server.url(), name)
