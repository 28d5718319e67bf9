"""`python -m relay.delivery --preview`: the octets that would leave, and nothing else happens."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.postgres.outgoing import HELD_OCTETS
from scripts.services import Ses

ROOT = Path(__file__).resolve().parents[3]
Query = Callable[..., list[tuple[Any, ...]]]
Preview = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def preview(postgres_url: str, tmp_path: Path) -> Preview:
    def run(email_id: str, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = kept | {"DATABASE_URL": postgres_url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "relay.delivery", "--preview", email_id]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=stdout, stderr=subprocess.PIPE, timeout=120, check=False
        )

    return run


@pytest.mark.parametrize("text", ["ä\n", "x\n" * HELD_OCTETS], ids=["small", "large"])
def test_it_prints_what_then_leaves_and_changes_nothing(
    preview: Preview,
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    text: str,
) -> None:
    email_id = add_email(text=text, to=["gone@x.example", "to@x.example"], bcc=["hidden@x.example"])
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (%s, 'user', 'gone@x.example', 'bounced')",
        str(uuid.uuid4()),
    )
    before = query("SELECT e::text FROM emails e")
    done = preview(email_id)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b"recipients: 'to@x.example', 'hidden@x.example'\n"
    assert query("SELECT e::text FROM emails e") == before
    assert query("SELECT count(*) FROM email_events") == [(0,)]
    assert ses.taken() == []
    deliver(email_id)
    (taken,) = ses.taken()
    assert taken.octets == done.stdout


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"to": ["gone@x.example"]}, rb"suppressed"),
        ({"attachments": [{"filename": "a.exe", "content": ""}]}, rb"RefusedExtension: .*\.exe"),
        (None, rb"no email"),
    ],
)
def test_it_says_why_no_mail_would_leave(
    preview: Preview, add_email: Callable[..., str], query: Query, columns: dict[str, Any] | None, reason: bytes
) -> None:
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason) VALUES (%s, 'user', 'gone@x.example', 'bounced')",
        str(uuid.uuid4()),
    )
    done = preview(str(uuid.uuid4()) if columns is None else add_email(**columns))
    assert (done.returncode, done.stdout) == (1, b"")
    assert re.search(reason, done.stderr), done.stderr


def test_a_terminal_gets_no_octets_of_a_mail(preview: Preview, add_email: Callable[..., str]) -> None:
    ours, theirs = pty.openpty()
    done = preview(add_email(), stdout=theirs)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"pipe" in done.stderr
    assert preview("no-id").returncode == 2
