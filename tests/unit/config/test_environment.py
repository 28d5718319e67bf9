"""What the environment may say, and what is said of what it may not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import psycopg2.extensions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import environment
from config.settings import RecipientRule, Settings, Source
from relay.operator import preflight
from tests.support.certificates import write_pair

DATABASE_URL = "postgres://user:hunter2@db.example:5432/mail?sslmode=require"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set but the one variable that has to be."""
    for setting in dataclasses.fields(Settings):
        for variable in setting.metadata["source"].variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DATABASE_URL", DATABASE_URL)


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return preflight.load()


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    with pytest.raises(environment.WrongSettings) as refused:
        load(monkeypatch, **variables)
    return str(refused.value).split("\n")


def test_defaults_are_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch)
    assert settings.database_url == DATABASE_URL
    assert settings.redis_url is None
    assert (settings.host, settings.port, settings.tls_port) == ("0.0.0.0", 2587, None)
    assert (settings.tls_cert_path, settings.tls_key_path) == (None, None)
    assert settings.max_message_size_bytes == 41_943_040
    assert (settings.queue_url, settings.db_polling_fallback, settings.require_queue) == (None, True, False)
    assert (settings.aws_region, settings.email_provider_max_attempts) == ("us-east-1", 3)
    assert (settings.sentry_dsn, settings.web_concurrency) == (None, 1)
    assert settings.recipients is RecipientRule.MERGE
    assert (settings.dedupe_seconds, settings.max_recipients, settings.drain_seconds) == (3600, 1000, 25.0)


def test_defaults_here_and_in_the_model_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch) == Settings(database_url=DATABASE_URL)


def test_every_setting_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    given = {
        "DATABASE_URL": "postgresql://localhost/x",
        "REDIS_URL": "rediss://:pw@cache.example:6380/2",
        "SMTP_RELAY_REDIS_TLS_VERIFY": "false",
        "SMTP_RELAY_PORT": "2525",
        "SMTP_RELAY_HOST": "::",
        "SMTP_RELAY_TLS_CERT_PATH": cert_path,
        "SMTP_RELAY_TLS_KEY_PATH": key_path,
        "SMTP_RELAY_TLS_PORT": "4650",
        "SMTP_RELAY_HOSTNAME": "mail.example",
        "SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES": "1000000",
        "SMTP_RELAY_MAX_RECIPIENTS": "7",
        "SMTP_RELAY_MAX_PARTS": "8",
        "SMTP_RELAY_MAX_PART_DEPTH": "9",
        "SMTP_RELAY_MAX_CONNECTIONS": "10",
        "SMTP_RELAY_COMMAND_TIMEOUT_SECONDS": "11.5",
        "SMTP_RELAY_TLS_HANDSHAKE_SECONDS": "12",
        "SMTP_RELAY_DRAIN_SECONDS": "0.5",
        "SMTP_RELAY_RECIPIENTS": "envelope",
        "SMTP_RELAY_DEDUPE_SECONDS": "0",
        "SMTP_RELAY_ALLOW_UTF8_LOCAL_PARTS": "true",
        "SMTP_RELAY_SPOOL_THRESHOLD_BYTES": "2048",
        "SMTP_RELAY_SPOOL_DIR": str(tmp_path),
        "BACKGROUND_JOBS_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/123/jobs.fifo",
        "BACKGROUND_JOBS_DB_POLLING_FALLBACK": "0",
        "BACKGROUND_JOBS_REQUIRE_QUEUE": "1",
        "AWS_REGION": "eu-west-1",
        "EMAIL_PROVIDER_MAX_ATTEMPTS": "5",
        "TRACKING_SECRET": "t",
        "TRACKING_BASE_URL": "https://track.example",
        "APP_URL": "http://localhost:3015",
        "WEBHOOK_SECRET_ENCRYPTION_KEY": "w",
        "WEB_CONCURRENCY": "4",
        "SMTP_RELAY_LOG_LEVEL": "debug",
        "SMTP_RELAY_LOG_FORMAT": "json",
        "SENTRY_DSN": "https://abc@sentry.example/7",
        "SMTP_RELAY_METRICS_PORT": "9100",
        "SMTP_RELAY_METRICS_HOST": "0.0.0.0",
    }
    settings = load(monkeypatch, **given)
    changed = {
        setting.metadata["source"].variables[0]
        for setting in dataclasses.fields(Settings)
        if getattr(settings, setting.name) != getattr(Settings(database_url=DATABASE_URL), setting.name)
    }
    assert changed == set(given), "a setting that this test doesn't know, or that doesn't listen to its variable"
    assert Settings.from_json(settings.to_json()) == settings


def test_port_falls_back_to_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, PORT="5000").port == 5000
    assert load(monkeypatch, PORT="5000", SMTP_RELAY_PORT="").port == 5000
    assert load(monkeypatch, PORT="5000", SMTP_RELAY_PORT="2525").port == 2525


@pytest.mark.parametrize("value", ["", " ", "\t"])
def test_empty_means_unset(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    variables = [
        variable
        for setting in dataclasses.fields(Settings)
        for variable in setting.metadata["source"].variables
        if variable != "DATABASE_URL"
    ]
    assert load(monkeypatch, **dict.fromkeys(variables, value)) == Settings(database_url=DATABASE_URL)


@pytest.mark.parametrize(
    ("value", "meaning"),
    [("true", True), ("TRUE", True), ("1", True), (" false ", False), ("False", False), ("0", False)],
)
def test_switches(monkeypatch: pytest.MonkeyPatch, value: str, meaning: bool) -> None:
    queue = {"BACKGROUND_JOBS_QUEUE_URL": "http://q/1/2"}
    assert load(monkeypatch, BACKGROUND_JOBS_DB_POLLING_FALLBACK=value, **queue).db_polling_fallback is meaning


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BACKGROUND_JOBS_REQUIRE_QUEUE", "yes"),
        ("BACKGROUND_JOBS_DB_POLLING_FALLBACK", "2"),
        ("SMTP_RELAY_PORT", "abc"),
        ("SMTP_RELAY_PORT", "0"),
        ("SMTP_RELAY_PORT", "65536"),
        ("SMTP_RELAY_PORT", "2587.5"),
        ("PORT", "-1"),
        ("SMTP_RELAY_TLS_PORT", "0"),
        ("SMTP_RELAY_HOST", "two words"),
        ("SMTP_RELAY_HOSTNAME", "mail.example\r\nevil"),
        ("SMTP_RELAY_HOSTNAME", "has_underscore"),
        ("SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES", "40MB"),
        ("SMTP_RELAY_MAX_MESSAGE_SIZE_BYTES", "-1"),
        ("SMTP_RELAY_DRAIN_SECONDS", "nan"),
        ("SMTP_RELAY_DRAIN_SECONDS", "inf"),
        ("SMTP_RELAY_RECIPIENTS", "MERGED"),
        ("SMTP_RELAY_LOG_LEVEL", "loud"),
        ("SMTP_RELAY_LOG_FORMAT", "xml"),
        ("BACKGROUND_JOBS_QUEUE_URL", "my-queue"),
        ("BACKGROUND_JOBS_QUEUE_URL", "arn:aws:sqs:us-east-1:1:jobs"),
        ("AWS_REGION", "Frankfurt"),
        ("WEB_CONCURRENCY", "0"),
        ("SMTP_RELAY_SPOOL_DIR", "/nowhere/at/all"),
        ("APP_URL", "localhost:3015"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    lines = refusal(monkeypatch, **{variable: value})
    assert len(lines) == 1
    assert lines[0].startswith(f"{variable} is {value!r}: should be ")
    assert len(lines[0]) < 300
    assert lines[0].isprintable()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "mysql://user:hunter2@db/x"),
        ("DATABASE_URL", "postgres://user:hunter2@db:port/x"),
        ("DATABASE_URL", "postgres://user:hunter2@db/x?nonsense=1"),
        ("DATABASE_URL", "hunter2"),
        ("REDIS_URL", "http://:hunter2@cache:6379"),
        ("REDIS_URL", "redis://:hunter2@cache:port"),
        ("REDIS_URL", "redis://:hunter2@cache:99999"),
        ("REDIS_URL", "redis://:hunter2@cache/zero"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "hunter2:6379"),
        ("SENTRY_DSN", "hunter2"),
    ],
)
def test_a_wrong_secret_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    (line,) = refusal(monkeypatch, **{variable: value})
    assert line.startswith(f"{variable} is set, but not shown: ")
    assert "should be " in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("DATABASE_URL", "mysql://user:secret@db/x", "scheme 'mysql' is not supported; should be"),
        ("DATABASE_URL", "postgres://user:secret@db:99999/x", "port 99999 is out of range; should be"),
        ("DATABASE_URL", "postgres://user:secret@db:0/x", "port 0 is out of range; should be"),
        ("DATABASE_URL", "postgres://user:secret@db/x?nonsense=1", "libpq can't read it"),
        ("DATABASE_URL", "postgres://user:sec%ret@db/x", "% is written as %25"),
        ("DATABASE_URL", "postgres://user:sec@se/cret@db/x", "percent-encoded"),
        ("DATABASE_URL", "postgres://user:5432/secret@db/x", "percent-encoded"),
        ("DATABASE_URL", "secret", "it has no scheme"),
        ("DATABASE_URL", "postgres://user:sec ret@se cret@db/x", "percent-encoded"),
        ("REDIS_URL", "http://:secret@cache", "scheme 'http' is not supported"),
        ("REDIS_URL", "redis://:secret@cache:99999", "port 99999 is out of range"),
        ("REDIS_URL", "redis://:secret@cache:port", "its port is not a number"),
        ("REDIS_URL", "redis://:secret@", "it names no host"),
        ("REDIS_URL", "redis://:secret@cache/zero", "number of a database"),
        ("SMTP_RELAY_PROXY_PROTOCOL", "10.0.0.1/8", "host bits are set; did you mean 10.0.0.0/8?"),
    ],
)
def test_what_is_wrong_with_a_value_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    (line,) = refusal(monkeypatch, **{variable: value})
    assert reason in line
    assert not any(part in line for part in ("secret", "sec ret", "se cret"))


@given(
    st.text(alphabet="ab:/@?#[]% \\'\"&=.1", min_size=1, max_size=24), st.sampled_from(["DATABASE_URL", "REDIS_URL"])
)
def test_no_part_of_a_url_is_shown_whatever_is_wrong_with_it(text: str, variable: str) -> None:
    scheme = "postgres" if variable == "DATABASE_URL" else "redis"
    said = ""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(variable, f"{scheme}://u:Xq7{text}Zw9@db.example/1")
        try:
            environment.load()
        except environment.WrongSettings as refused:
            said = str(refused)
    assert "Xq7" not in said
    assert "Zw9" not in said


@given(st.text(alphabet="ab:/@?#[]% \\'\"&.1", min_size=1, max_size=24))
def test_a_password_as_it_is_never_makes_another_host_of_the_url(text: str) -> None:
    """Whatever is not percent-encoded: libpq reads the password and the host that were meant, or the URL is refused."""
    url = f"postgres://u:{text}@db.example/1"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DATABASE_URL", url)
        try:
            environment.load()
        except environment.WrongSettings:
            return
    assert psycopg2.extensions.parse_dsn(url)["host"] == "db.example"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "SMTP_RELAY_MAX_RECIPIENT",
            "SMTP_RELAY_MAX_RECIPIENT is not a setting; did you mean SMTP_RELAY_MAX_RECIPIENTS?",
        ),
        ("SMTP_RELAY_XYZ", "SMTP_RELAY_XYZ is not a setting"),
    ],
)
def test_a_variable_that_only_looks_like_a_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, line: str
) -> None:
    monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("SMTP_RELAY_PORT", "2587")
    assert [each for each in environment.unknown() if name in each] == [line]
    assert not any("SMTP_RELAY_PORT" in each for each in environment.unknown())


def test_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = refusal(monkeypatch, DATABASE_URL="")
    assert line.startswith("DATABASE_URL is not set: should be a URL like postgres://")


def test_all_wrong_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refusal(monkeypatch, DATABASE_URL="x", WEB_CONCURRENCY="many", PORT="http")
    assert [line.split()[0] for line in lines] == ["DATABASE_URL", "PORT", "WEB_CONCURRENCY"]


def test_nothing_would_deliver(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = refusal(monkeypatch, BACKGROUND_JOBS_DB_POLLING_FALLBACK="false")
    assert line.startswith(
        "BACKGROUND_JOBS_QUEUE_URL is not set: should be the URL of an SQS queue, because BACKGROUND_"
    )
    assert load(monkeypatch, BACKGROUND_JOBS_QUEUE_URL="https://sqs.example/1/jobs").queue_url


def test_queue_required(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = refusal(monkeypatch, BACKGROUND_JOBS_REQUIRE_QUEUE="true")
    assert line == (
        "BACKGROUND_JOBS_QUEUE_URL is not set: should be the URL of an SQS queue, because "
        "BACKGROUND_JOBS_REQUIRE_QUEUE is true"
    )


@pytest.mark.parametrize("given", ["CERT", "KEY"])
def test_half_a_tls_pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str) -> None:
    paths = dict(zip(("CERT", "KEY"), write_pair(tmp_path), strict=True))
    missing = "KEY" if given == "CERT" else "CERT"
    (line,) = refusal(monkeypatch, **{f"SMTP_RELAY_TLS_{given}_PATH": paths[given]})
    assert line.startswith(f"SMTP_RELAY_TLS_{missing}_PATH is not set: should be ")
    assert f"SMTP_RELAY_TLS_{given}_PATH is set" in line


def test_a_pair_that_does_not_match(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cert_path, _ = write_pair(tmp_path / "one")
    _, key_path = write_pair(tmp_path / "two")
    (line,) = refusal(monkeypatch, SMTP_RELAY_TLS_CERT_PATH=cert_path, SMTP_RELAY_TLS_KEY_PATH=key_path)
    assert line.startswith(f"SMTP_RELAY_TLS_KEY_PATH is {key_path!r}: should be the key of ")


def test_implicit_tls_needs_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = refusal(monkeypatch, SMTP_RELAY_TLS_PORT="465")
    assert line.startswith("SMTP_RELAY_TLS_PORT is 465: should be unset, or ")


def test_implicit_tls_on_the_same_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cert_path, key_path = write_pair(tmp_path)
    pair = {"SMTP_RELAY_TLS_CERT_PATH": cert_path, "SMTP_RELAY_TLS_KEY_PATH": key_path}
    (line,) = refusal(monkeypatch, SMTP_RELAY_PORT="4650", SMTP_RELAY_TLS_PORT="4650", **pair)
    assert line == "SMTP_RELAY_TLS_PORT is 4650: should be another port than SMTP_RELAY_PORT"


def test_secrets_are_not_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        REDIS_URL="redis://:hunter2@cache:6379",
        SENTRY_DSN="https://hunter2@sentry.example/1",
        TRACKING_SECRET="hunter2",
        WEBHOOK_SECRET_ENCRYPTION_KEY="hunter2",
    )
    assert "hunter2" not in repr(settings)


def test_what_a_setting_is_worth_documenting() -> None:
    """Every setting says where it comes from and what it should be; no variable is read twice, but the platform's
    PORT: a process listens on one, for SMTP or for HTTP."""
    sources: list[Source] = [setting.metadata["source"] for setting in dataclasses.fields(Settings)]
    variables = [variable for source in sources for variable in source.variables]
    variables.remove("PORT")
    assert len(variables) == len(set(variables))
    assert all(source.expected for source in sources)


@pytest.mark.parametrize(
    ("variable", "value", "setting"),
    [
        ("SMTP_RELAY_LOG_LEVEL", "INFO", "info"),
        ("SMTP_RELAY_LOG_LEVEL", "Warning", "warning"),
        ("SMTP_RELAY_LOG_FORMAT", "JSON", "json"),
        ("SMTP_RELAY_LOG_CLIENT_ADDRESSES", "All", "all"),
        ("SMTP_RELAY_PROVIDER", "SES", "ses"),
        ("SMTP_RELAY_RECIPIENTS", "Envelope", "envelope"),
    ],
)
def test_one_of_several_words_takes_any_case(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, setting: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://u@h/d")
    monkeypatch.setenv(variable, value)
    loaded = environment.load()
    (name,) = (field.name for field in dataclasses.fields(loaded) if variable in field.metadata["source"].variables)
    assert getattr(loaded, name) == setting
