"""What `--check` says of the key that webhooks are signed by, and of the settings of links and events."""

from __future__ import annotations

import gevent
import pytest

from config.settings import Settings
from relay.operator import events_probe, webhook_probe
from relay.operator.finding import FAIL, OK, WARN, Finding
from scripts.database import create_webhook, execute
from tests.support.webhook_rows import MATERIAL, SECRET, add_webhook, encrypted

pytestmark = pytest.mark.usefixtures("green_psycopg")

OTHER = "another key of sixteen"


def found(url: str, key: str | None, **more: bool) -> list[Finding]:
    settings = Settings(database_url=url, webhook_secret_encryption_key=key, **more)  # type: ignore[arg-type]
    findings: list[Finding] = gevent.spawn(lambda: list(webhook_probe.findings(settings, seconds=20.0))).get()
    said = " ".join(finding.text for finding in findings)
    for secret in (SECRET, MATERIAL, OTHER, "v1."):
        assert secret not in said
    return findings


def levels(url: str, key: str | None, **more: bool) -> list[str]:
    return [finding.level for finding in found(url, key, **more)]


def test_a_key_that_does_not_open_the_secrets_is_found(postgres_url: str) -> None:
    assert levels(postgres_url, None) == [OK]  # there is nothing to sign with it
    # Neither is one to be opened: a secret in the clear is none, and nothing is sent to a disabled webhook.
    add_webhook(postgres_url, "https://a.example/", status="disabled")
    execute(postgres_url, "UPDATE webhooks SET signing_secret_enc = 'v1.a.b.c'")
    create_webhook(postgres_url, signing_secret_enc="whsec_plain")
    assert levels(postgres_url, OTHER) == [OK]
    add_webhook(postgres_url, "https://c.example/")
    assert levels(postgres_url, None) == [FAIL]
    assert levels(postgres_url, OTHER) == [FAIL]
    assert levels(postgres_url, MATERIAL) == [OK]
    assert levels(postgres_url, OTHER, webhooks=False) == [OK]
    webhook_id = add_webhook(postgres_url, "https://d.example/")
    execute(
        postgres_url,
        "UPDATE webhooks SET signing_secret_enc = %s WHERE id = %s",
        (encrypted(SECRET, OTHER), webhook_id),
    )
    (finding,) = found(postgres_url, MATERIAL)
    assert (finding.level, "1 of 2" in finding.text) == (WARN, True)
    assert [finding.level for finding in found(postgres_url, "short")] == [WARN, FAIL]


def test_secrets_that_may_not_be_read_are_a_warning() -> None:
    assert levels("postgres://nobody@127.0.0.1:1/none", MATERIAL) == [WARN]


def test_links_and_topics_are_looked_at() -> None:
    unset = Finding(OK, "events", "unset")
    settings = Settings(
        database_url="postgres://unused",
        tracking_secret="sixteen characters",
        app_url="https://app.example/x",
        ses_events_topic="arn:aws:sns:eu-west-1:123456789012:events, nonsense",
    )
    links = list(events_probe.tracking(settings, unset=unset, makes_links=True))
    assert [(finding.level, finding.text) for finding in links] == [(OK, "links lead to https://app.example")]
    topics = list(events_probe.topics(settings, unset=unset, meaning="{} it is"))
    assert [finding.level for finding in topics] == [OK, FAIL]
    assert topics[0].text == "arn:aws:sns:eu-west-1:123456789012:events it is"
    without = Settings(database_url="postgres://unused")
    assert list(events_probe.topics(without, unset=unset, meaning="{}")) == [unset]
    assert list(events_probe.tracking(without, unset=unset, makes_links=True)) == [unset]
    short = Settings(database_url="postgres://unused", tracking_secret="short")
    for makes_links, levels_found in ((True, [WARN, WARN]), (False, [WARN])):
        found = list(events_probe.tracking(short, unset=unset, makes_links=makes_links))
        assert [finding.level for finding in found] == levels_found
