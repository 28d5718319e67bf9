"""Rows of emails for tests of the way out."""

from __future__ import annotations

import json
import uuid
from typing import Any

from scripts.database import execute


def add_email(url: str, **columns: Any) -> str:
    """A queued mail, every column optional; its id. `url`: of the database."""
    row: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "from": "Ann <ann@example.com>",
        "to": ["to@x.example"],
        "cc": [],
        "bcc": [],
        "reply_to": [],
        "subject": "Hello",
        "html": "",
        "text": "Hi\n",
        "headers": {},
        "attachments": [],
        "tags": [],
        "user_id": "user",
    } | columns
    names = ", ".join(f'"{name}"' for name in row)
    values = [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
    execute(url, f"INSERT INTO emails ({names}) VALUES ({', '.join(['%s'] * len(row))})", tuple(values))
    return str(row["id"])
