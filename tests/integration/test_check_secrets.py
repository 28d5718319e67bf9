"""No part of a URL is printed by the check or by warm_cache, however odd its characters and wherever they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import psycopg2
import pytest

from config import environment
from config.settings import Settings
from relay.operator import postgres_probe
from relay.operator.redis_probe import RedisProbe
from relay.postgres.causes import postgres_cause
from scripts.services import free_port

pytestmark = pytest.mark.usefixtures("green_psycopg")

ROOT = Path(__file__).resolve().parents[2]

#: Characters that mean something in a URL, in a connection string, in a log or to a shell.
ODD = [*"@/:?#% \\'\"&=+[]é漢\t${<", "%zz", "%41"]
#: A recognisable piece on each side of the odd character, none of which is a part of any word of ours.
LEFT, RIGHT = "QXJ", "ZKV"
SECRET = [f"{LEFT}{odd}{RIGHT}" for odd in ODD]


def hidden(text: str, *, but: str = "") -> bool:
    shown = text.replace(but, "") if but else text
    return LEFT.lower() not in shown.lower() and RIGHT.lower() not in shown.lower()


def malformed(scheme: str, secret: str, port: int, path: str) -> list[str]:
    """URLs with the secret in each of their parts, as it is and percent-encoded."""
    encoded = quote(secret, safe="")
    return [
        url.format(secret=each, scheme=scheme, port=port, path=path)
        for each in (secret, encoded)
        for url in (
            "{scheme}://user:{secret}@127.0.0.1:{port}/{path}",
            "{scheme}://{secret}:pw@127.0.0.1:{port}/{path}",
            "{scheme}://{secret}@127.0.0.1:{port}/{path}",
            "{scheme}://user:pw@{secret}:{port}/{path}",
            "{scheme}://user:pw@127.0.0.1:{secret}/{path}",
            "{scheme}://user:pw@127.0.0.1:{port}/{secret}",
            "{scheme}://user:pw@127.0.0.1:{port}/{path}?{secret}=1",
            "{scheme}://user:pw@127.0.0.1:{port}/{path}?sslmode={secret}",
            "{scheme}://user:{secret}",
        )
    ]


def said_of(monkeypatch: pytest.MonkeyPatch, find: Callable[[Settings], str], **variables: str) -> str:
    """What is said of an environment: by the reading of it, or by what looks at the services then."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        settings = environment.load()
    except environment.WrongSettings as error:
        return str(error)
    return find(settings)


@pytest.mark.parametrize("secret", SECRET)
def test_no_part_of_a_postgres_url_is_said(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    port = free_port()

    def find(settings: Settings) -> str:
        findings: list[Any] = gevent.spawn(lambda: list(postgres_probe.findings(settings, seconds=2.0))).get()
        return str(findings)

    for url in malformed("postgres", secret, port, "db"):
        said = said_of(monkeypatch, find, DATABASE_URL=url)
        assert said
        assert hidden(said), url


@pytest.mark.parametrize("secret", SECRET)
def test_no_part_of_a_redis_url_is_said(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    port = free_port()
    for url in malformed("redis", secret, port, "0"):
        said = said_of(
            monkeypatch,
            lambda settings: str(list(RedisProbe(settings, timeout=1.0).findings())),
            DATABASE_URL="postgres://u@h/d",
            REDIS_URL=url,
        )
        assert said
        assert hidden(said), url


@pytest.mark.parametrize("secret", SECRET)
@pytest.mark.parametrize("variable", ["BACKGROUND_JOBS_QUEUE_URL", "APP_URL", "SMTP_RELAY_HOST", "SMTP_RELAY_PORT"])
def test_user_information_is_not_said_of_a_setting_that_has_none(
    monkeypatch: pytest.MonkeyPatch, variable: str, secret: str
) -> None:
    value = f"https://user:{secret}@127.0.0.1 /"
    assert hidden(said_of(monkeypatch, lambda _: "fine", **{"DATABASE_URL": "postgres://u@h/d", variable: value}))


def test_a_password_whose_end_libpq_takes_for_the_host(tmp_path: Path) -> None:
    """As an operator meets it, in both programs."""
    variables = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": f"postgres://user:{LEFT}@{RIGHT}.word@localhost:{free_port()}/db",
        "REDIS_URL": f"redis://:pw@127.0.0.1:{free_port()}",
    }
    for command in (["-m", "relay", "--check"], ["scripts/warm_cache.py"]):
        ended = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode != 0
        assert "DATABASE_URL" in ended.stdout + ended.stderr
        assert hidden(ended.stdout + ended.stderr)


@pytest.mark.parametrize(
    "text",
    [
        f'connection to server at "{LEFT}", port 1 failed: FATAL:  password authentication failed for user "{RIGHT}"',
        f'could not translate host name "{LEFT} {RIGHT}@localhost" to address: Name or service not known',
        f'FATAL:  database "{LEFT}" does not exist',
        f"something that nobody has seen yet: {LEFT}{RIGHT}",
        f'invalid integer value "{LEFT}" for connection option "port"',
    ],
)
def test_a_text_of_libpqs_is_said_in_other_words(text: str) -> None:
    said = postgres_cause(psycopg2.OperationalError(text))
    assert said
    assert hidden(said)
