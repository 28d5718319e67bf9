"""The check does what the relay does: whatever right is missing, it says so, and nothing that it wrote stays."""

from __future__ import annotations

import ast
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import limits
import psycopg2
import pytest
import redis

from config.settings import Settings
from relay.operator import delivery_redis_probe, postgres_probe, web_redis_probe
from relay.operator.finding import Finding
from relay.operator.redis_probe import RedisProbe
from relay.postgres.schema_check import TABLES
from relay.redis import keys
from scripts.database import execute
from scripts.services import Valkey

ROOT = Path(__file__).resolve().parents[2]
#: Patterns of OpenSend's names and the relay's, under which something is written.
PATTERNS = sorted(
    (value.decode() if isinstance(value, bytes) else value) + ("*" if name.endswith("_PREFIX") else "")
    for name, value in vars(keys).items()
    if name.endswith(("_PREFIX", "_KEY"))
)
#: Words of the protocol's that the sources have for another reason than to send them, or for the link's own ends.
NOT_SENT = {"HELLO", "PING", "INFO", "TIME", "COMMAND", "AUTH", "QUIT", "RESET", "SELECT", "SCRIPT", "READONLY"}


# Redis.


@pytest.fixture
def administrator(valkey_server: Valkey, redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.execute_command("ACL", "DELUSER", "relay")


@pytest.fixture
def check(administrator: redis.Redis, valkey_server: Valkey) -> Callable[..., list[Finding]]:
    """What the checks of all programs find with a user of these rights, in Redis's words."""

    def check(*rights: str) -> list[Finding]:
        administrator.execute_command("ACL", "SETUSER", "relay", "reset", "on", ">pw", *rights)
        settings = Settings(
            database_url="postgres://unused",
            redis_url=f"redis://relay:pw@{valkey_server.host}:{valkey_server.port}",
            queue_url="http://127.0.0.1/1/jobs",
            key_messages_per_minute=1,
        )
        found = [*RedisProbe(settings, timeout=5.0).findings()]
        for probe in (delivery_redis_probe, web_redis_probe):
            found += probe.findings(settings, timeout=5.0)
        return list(dict.fromkeys(found))

    return check


def sent_commands(server: redis.Redis) -> set[str]:
    """Every command that the relay's sources name, in Python or in Lua."""
    known = {str(name, "ascii").upper() for name in server.execute_command("COMMAND LIST")}
    found: set[str] = set()
    texts = [
        path.read_text() for path in (Path(limits.__file__).parent / "resources").rglob("acquire_sliding_window.lua")
    ]
    for room in ("redis", "limits", "jobs", "intake"):
        for path in (ROOT / "relay" / room).glob("*.py"):
            texts.append(path.read_text())
            found |= {
                node.value
                for node in ast.walk(ast.parse(texts[-1]))
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in known
            }
    for text in texts:
        found |= {name.upper() for name in re.findall(r"redis\.call\('(\w+)'", text)}
    return found - NOT_SENT


def test_all_rights(check: Callable[..., list[Finding]], administrator: redis.Redis) -> None:
    assert check("~*", "+@all") == [Finding("ok", "redis", "answers, reads and writes")]
    left = {name: administrator.ttl(name) for name in administrator.scan_iter()}
    assert all(name.startswith(b"smtp-relay:rate") and 0 < ttl <= 120 for name, ttl in left.items())


def test_exactly_the_rights_that_are_needed(check: Callable[..., list[Finding]]) -> None:
    """As a careful operator grants them."""
    names = [f"~{prefix}*" for prefix in ("auth:apikey:", "smtp-relay:")]
    assert check(*names, "+@all", "-@dangerous", "-@admin", "+info") == [
        Finding("ok", "redis", "answers, reads and writes")
    ]


def test_no_command_may_be_missing(check: Callable[..., list[Finding]], administrator: redis.Redis) -> None:
    commands = sent_commands(administrator) | {"TIME", "SCRIPT|LOAD"}
    assert {"MGET", "HSET", "EVALSHA", "EVAL", "ZADD", "SMISMEMBER", "TIME", "PTTL", "RENAME"} <= commands
    unnoticed = [
        name for name in sorted(commands) if all(each.level == "ok" for each in check("~*", "+@all", f"-{name}"))
    ]
    assert unnoticed == []


def test_no_name_may_be_forbidden_or_read_only(check: Callable[..., list[Finding]]) -> None:
    assert len(PATTERNS) >= 14
    for pattern in PATTERNS:
        others = [f"~{other}" for other in PATTERNS if other != pattern]
        found = check(*others, "+@all")
        assert any(finding.level != "ok" for finding in found), pattern
        found = check(*others, f"%R~{pattern}", "+@all")
        assert any(finding.level != "ok" for finding in found), pattern


@pytest.mark.parametrize(
    "rights",
    [
        ("~*", "+@all", "-hset"),
        ("~*", "+@all", "-time"),
        ("%R~auth:apikey:*", "+@all"),
        ("%R~auth:apikey:*", "~smtp-relay:*", "+@all"),
        ("%R~*", "+@all"),
        ("~*", "+@read"),
        ("~*", "-@all"),
        ("+@all",),
    ],
)
def test_what_would_double_mails_or_cost_the_cache_fails(
    check: Callable[..., list[Finding]], rights: tuple[str, ...]
) -> None:
    found = check(*rights)
    assert "FAIL" in {finding.level for finding in found}
    assert "NOPERM" in found[0].text


def test_a_right_that_only_warming_needs_is_a_failure_of_that_alone(check: Callable[..., list[Finding]]) -> None:
    (found,) = [each for each in check("~*", "+@all", "-sadd") if each.level != "ok"]
    assert found.text == "lists of suppressions: NOPERM for SADD; warm-cache could not fill them"


def test_a_cluster_fails(tmp_path: Path) -> None:
    with Valkey(tmp_path / "cluster", settings=["--cluster-enabled", "yes"]) as server:
        settings = Settings(database_url="postgres://unused", redis_url=server.url)
        (found,) = RedisProbe(settings, timeout=5.0).findings()
    assert found.level == "FAIL"
    assert found.text.startswith("is a Redis Cluster, which is not supported")


def test_a_full_server_is_a_warning(tmp_path: Path) -> None:
    """It may have room again; what is missing for good fails."""
    with Valkey(tmp_path / "full", settings=["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"]) as server:
        settings = Settings(database_url="postgres://unused", redis_url=server.url)
        found = list(RedisProbe(settings, timeout=5.0).findings())
    assert {finding.level for finding in found} == {"warn"}
    assert "OOM" in found[0].text


# Postgres.


@pytest.fixture
def role(postgres_url: str, green_psycopg: None) -> Iterator[tuple[str, str]]:
    """A role with all rights on the contract's tables, and the URL as which it logs in."""
    name = f"weak_{uuid.uuid4().hex}"
    execute(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    for table in TABLES:
        execute(postgres_url, f"GRANT SELECT, INSERT, UPDATE ON {table} TO {name}")
    yield name, re.sub(r"//[^@]*@", f"//{name}:{name}@", postgres_url)
    execute(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


def postgres_findings(url: str) -> list[Finding]:
    # A hub has greenlets to wait with, as in the check.
    return gevent.spawn(lambda: list(postgres_probe.findings(Settings(database_url=url), seconds=20.0))).get()


@pytest.mark.usefixtures("green_psycopg")
def test_nothing_stays_in_postgres(postgres_url: str, make_api_key: Callable[..., Any]) -> None:
    make_api_key()
    execute(
        postgres_url,
        "CREATE TABLE seen (what text); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO seen VALUES (TG_TABLE_NAME); RETURN NEW; END $$",
    )
    for table in TABLES:
        execute(
            postgres_url, f"CREATE TRIGGER note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note()"
        )
    assert [finding.level for finding in postgres_findings(postgres_url)] == ["ok"]
    connection = psycopg2.connect(postgres_url)
    with connection.cursor() as cursor:
        for table in ("seen", "emails", "email_events", "webhook_deliveries"):
            cursor.execute(f"SELECT count(*) FROM {table}")
            assert cursor.fetchone() == (0,), table
    connection.close()


def test_all_rights_in_postgres(role: tuple[str, str]) -> None:
    assert [finding.level for finding in postgres_findings(role[1])] == ["ok"]


@pytest.mark.parametrize(
    "statement",
    [
        # Of these the catalogue says nothing.
        "ALTER TABLE emails ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE email_events ENABLE ROW LEVEL SECURITY",
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'secret text'; END $$;"
        " CREATE TRIGGER no BEFORE INSERT ON emails FOR EACH ROW EXECUTE FUNCTION no()",
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        " CREATE TRIGGER no BEFORE INSERT ON emails FOR EACH ROW EXECUTE FUNCTION no()",
        "ALTER TABLE emails ADD CONSTRAINT no CHECK (subject <> 'Check')",
        "CREATE RULE no AS ON INSERT TO emails DO INSTEAD NOTHING",
    ],
)
def test_what_only_the_statement_shows_fails(role: tuple[str, str], postgres_url: str, statement: str) -> None:
    execute(postgres_url, statement)
    found = postgres_findings(role[1])
    assert {finding.level for finding in found} == {"FAIL"}
    assert all("secret" not in finding.text and role[0] not in finding.text for finding in found)
