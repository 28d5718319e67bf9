"""The delivery worker with a smart host: with this project's own relay as one, with TLS and AUTH; and its `--check`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from config.environment import WrongSettings
from relay.operator import preflight, smart_host_probe
from scripts.database import create_api_key, create_database, drop_database
from scripts.services import Postgres, free_port
from tests.support import program
from tests.support.certificates import write_pair
from tests.support.relay_process import Relay
from tests.support.smtp_double import CLOSE, PASSWORD, RUBBISH, USER, Odd, SmtpDouble

ROOT = Path(__file__).resolve().parents[3]
Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def hosts_url(postgres_server: Postgres, schema_template: str) -> Iterator[str]:
    """The database of the relay that is the smart host."""
    name = f"host_{uuid.uuid4().hex}"
    yield create_database(postgres_server.url(), name, schema_template)
    drop_database(postgres_server.url(), name)


@pytest.fixture
def host(tmp_path: Path, hosts_url: str, redis_url: str) -> Iterator[tuple[Relay, dict[str, str]]]:
    """A relay, and the settings with which a worker hands mails to it."""
    certificate, key = write_pair(tmp_path / "tls")
    settings = {
        "DATABASE_URL": hosts_url,
        "REDIS_URL": redis_url,
        "SMTP_RELAY_TLS_CERT_PATH": certificate,
        "SMTP_RELAY_TLS_KEY_PATH": key,
        "SMTP_RELAY_RECIPIENTS": "envelope",
    }
    with Relay(tmp_path / "host", settings) as relay:
        yield (
            relay,
            {
                "SMTP_RELAY_PROVIDER": "smtp",
                "SMTP_RELAY_SMARTHOST_HOST": "localhost",
                "SMTP_RELAY_SMARTHOST_PORT": str(relay.port),
                "SMTP_RELAY_SMARTHOST_USER": "opensend",
                "SMTP_RELAY_SMARTHOST_PASSWORD": create_api_key(hosts_url).token,
                "SMTP_RELAY_SMARTHOST_CA_PATH": certificate,
            },
        )


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.05)


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def test_mails_leave_by_way_of_a_relay_of_ours(
    host: tuple[Relay, dict[str, str]],
    hosts_url: str,
    postgres_url: str,
    add_email: Callable[..., str],
    query: Query,
    tmp_path: Path,
) -> None:
    """Small ones and one that goes through a file, to a host that knows who is suppressed there."""
    _, settings = host
    user = rows(hosts_url, "SELECT user_id FROM api_keys")[0][0]
    with psycopg2.connect(hosts_url) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, 'gone@y.example', 'bounced', now(), now())",
            (user,),
        )
    small = {add_email(subject=f"mail {number}", bcc=["hidden@y.example"]) for number in range(30)}
    large = add_email(subject="large", text="a line of text\n" * 100_000)
    refused = add_email(subject="refused", to=["gone@y.example"])
    log = tmp_path / "worker.log"
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = kept | settings | {"DATABASE_URL": postgres_url, "PYTHONPATH": str(ROOT)}
    environment |= {"SMTP_RELAY_SMARTHOST_CONNECTIONS": "3"}
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "relay.delivery"], cwd=tmp_path, env=environment, stdout=output, stderr=output
        )
    until(lambda: query("SELECT count(*) FROM emails WHERE status IN ('sent', 'failed')") == [(32,)], 120)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 0
    stored = rows(hosts_url, 'SELECT subject, "to", bcc, text FROM emails')
    wanted = {*(f"mail {number}" for number in range(30)), "large"}
    assert sorted(subject for subject, *_ in stored) == sorted(wanted)
    for subject, to, bcc, text in stored:
        assert (to, bcc) == (["to@x.example"], [] if subject == "large" else ["hidden@y.example"])
        assert text.rstrip("\n") == ("Hi" if subject != "large" else ("a line of text\n" * 100_000).rstrip("\n"))
    assert {str(each) for (each,) in query("SELECT id FROM emails WHERE status = 'sent'")} == small | {large}
    ((code, message),) = query(
        "SELECT provider_last_error_code, provider_last_error_message FROM emails WHERE id = %s", refused
    )
    assert code == "550 5.7.1"
    assert "suppressed" in message
    names = {str(name) for (name,) in rows(hosts_url, "SELECT id FROM emails")}
    sent = query("SELECT payload ->> 'message_id', payload ->> 'provider' FROM email_events WHERE type = 'sent'")
    assert set(sent) == {(name, "smtp") for name in names}  # the id by which the host knows the mail
    text = log.read_text()
    for secret in ("x.example", "y.example", settings["SMTP_RELAY_SMARTHOST_PASSWORD"], "Traceback", "mail 1"):
        assert secret not in text


@pytest.mark.parametrize("limit", ["setting", "host"])
def test_a_process_sends_over_no_more_connections_than_the_setting_and_the_host_say(
    postgres_url: str, add_email: Callable[..., str], query: Query, tmp_path: Path, limit: str
) -> None:
    """A host that refuses further connections while it takes mails is well: it does not rest, and no mail fails."""
    with SmtpDouble(most_connections=3 if limit == "host" else 1000) as double:
        for _ in range(40):
            add_email()
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = kept | {
            "DATABASE_URL": postgres_url,
            "PYTHONPATH": str(ROOT),
            "SMTP_RELAY_PROVIDER": "smtp",
            "SMTP_RELAY_SMARTHOST_HOST": "127.0.0.1",
            "SMTP_RELAY_SMARTHOST_PORT": str(double.port),
            "SMTP_RELAY_SMARTHOST_TLS": "none",
            "SMTP_RELAY_SMARTHOST_USER": USER,
            "SMTP_RELAY_SMARTHOST_PASSWORD": PASSWORD,
            "SMTP_RELAY_SMARTHOST_CONNECTIONS": "3" if limit == "setting" else "20",
        }
        with (tmp_path / "worker.log").open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, "-m", "relay.delivery"], cwd=tmp_path, env=environment, stdout=output, stderr=output
            )
        until(lambda: query("SELECT count(*) FROM emails WHERE status = 'sent'") == [(40,)])
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=30) == 0
        assert len(double.taken) == 40
        if limit == "setting":
            assert 1 <= double.most_open <= 3
        assert "region_paused" not in (tmp_path / "worker.log").read_text()
        double.wait_for_ends()  # the end of the service closes what is idle


# --check.


def findings(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the check finds: level, text."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = list(smart_host_probe.findings(preflight.load(), seconds=20.0))
    assert {finding.part for finding in found} == {"smtp"}
    assert PASSWORD not in str(found)
    return [(finding.level, finding.text) for finding in found]


def of_double(double: SmtpDouble) -> dict[str, str]:
    return {
        "DATABASE_URL": "postgres://localhost/x",
        "SMTP_RELAY_PROVIDER": "smtp",
        "SMTP_RELAY_SMARTHOST_HOST": "127.0.0.1",
        "SMTP_RELAY_SMARTHOST_PORT": str(double.port),
        "SMTP_RELAY_SMARTHOST_TLS": "none",
        "SMTP_RELAY_SMARTHOST_USER": USER,
        "SMTP_RELAY_SMARTHOST_PASSWORD": PASSWORD,
    }


def test_check_of_a_relay_of_ours(
    host: tuple[Relay, dict[str, str]], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, settings = host
    settings |= {"DATABASE_URL": postgres_url}
    place = f"localhost:{relay.port}"
    good = program.run("relay.delivery", "--check", **settings)
    assert (good.status, good.errors) == (0, "")
    wanted = ("ok", f"{place}: takes mail (TLSv1.3; PIPELINING, SIZE)")
    assert good.of("smtp") == [wanted]
    assert findings(settings, monkeypatch) == [wanted]
    wrong = settings | {"SMTP_RELAY_SMARTHOST_PASSWORD": "os_live_wrong"}
    assert findings(wrong, monkeypatch) == [("FAIL", f"{place}: user or password is refused (535 5.7.8)")]
    monkeypatch.delenv("SMTP_RELAY_SMARTHOST_CA_PATH")
    del settings["SMTP_RELAY_SMARTHOST_CA_PATH"]
    ((level, text),) = findings(settings, monkeypatch)
    assert level == "FAIL"
    assert "certificate can't be verified" in text


def test_check_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    with SmtpDouble(offers=("SIZE 1000",), heard=heard.append) as double:
        settings = of_double(double)
        place = f"127.0.0.1:{double.port}"
        assert findings(settings, monkeypatch) == [
            ("warn", f"{place}: takes 1000 octets at most: larger mails fail"),
            ("ok", f"{place}: takes mail (no TLS; SIZE)"),
        ]
        assert [command.split()[0] for command in heard] == ["EHLO", "AUTH", "NOOP", "QUIT"]
        wrong = findings(settings | {"SMTP_RELAY_SMARTHOST_PASSWORD": "x"}, monkeypatch)
        assert wrong == [("FAIL", f"{place}: user or password is refused (535 5.7.8)")]
        double.odd = Odd("banner", "421 4.3.2 closing")
        assert findings(settings, monkeypatch) == [("FAIL", f"{place}: it accepts no mail at present (421 4.3.2)")]
        for word, text in (
            (CLOSE, "it closed the connection"),
            (RUBBISH, "the server there does not speak SMTP"),
        ):
            double.odd = Odd("banner", word)
            assert findings(settings, monkeypatch) == [("FAIL", f"{place}: {text}")]
        starttls = findings(settings | {"SMTP_RELAY_SMARTHOST_TLS": "starttls"}, monkeypatch)
        assert starttls == [("FAIL", f"{place}: it does not offer STARTTLS, which SMTP_RELAY_SMARTHOST_TLS asks for")]
    port = str(free_port())
    refused = findings(of_double(double) | {"SMTP_RELAY_SMARTHOST_PORT": port}, monkeypatch)
    assert refused == [("FAIL", f"127.0.0.1:{port}: the connection was refused")]


A, P, U = "SMTP_RELAY_SMARTHOST_HOST", "SMTP_RELAY_SMARTHOST_PASSWORD", "SMTP_RELAY_SMARTHOST_USER"
IN_THE_CLEAR = {"SMTP_RELAY_SMARTHOST_TLS": "none"}


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, A),
        ({A: "ann:secret@mail.example"}, A),
        ({A: "a.example", U: "ann"}, P),
        ({A: "a.example", P: PASSWORD}, U),
        ({A: "a.example", U: "ann", P: PASSWORD, **IN_THE_CLEAR}, "SMTP_RELAY_SMARTHOST_TLS"),
        ({A: "a.example", "SMTP_RELAY_SMARTHOST_CA_PATH": __file__}, "SMTP_RELAY_SMARTHOST_CA_PATH"),
        ({A: "a.example", "SMTP_RELAY_SMARTHOST_CA_PATH": "missing.pem"}, "SMTP_RELAY_SMARTHOST_CA_PATH"),
        ({A: "a.example", U: "ann", P: PASSWORD}, None),
        ({A: "a.example", **IN_THE_CLEAR}, None),
        ({A: "127.0.0.1", U: "ann", P: PASSWORD, **IN_THE_CLEAR}, None),
        ({A: "::1", U: "ann", P: PASSWORD, **IN_THE_CLEAR}, None),
        ({A: "localhost", U: "ann", P: PASSWORD, **IN_THE_CLEAR}, None),
    ],
)
def test_settings_that_contradict_each_other(
    settings: dict[str, str], wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"DATABASE_URL": "postgres://localhost/x", "SMTP_RELAY_PROVIDER": "smtp"} | settings).items():
        monkeypatch.setenv(name, value)
    if wrong is None:
        assert PASSWORD not in repr(preflight.load())
        return
    with pytest.raises(WrongSettings) as error:
        preflight.load()
    assert [line.split()[0] for line in str(error.value).splitlines()] == [wrong]
    assert not {PASSWORD, "secret"} & set(str(error.value).replace("'", " ").split())
