"""Hostile documents where a key is remembered: none lets a key in that Postgres doesn't know, and none does harm."""

from __future__ import annotations

import hashlib
import smtplib

import pytest
import redis

from scripts.database import NewApiKey
from tests.support.relay_process import Relay

HOSTILE = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"apiKeyId":"1","permission":"x","domain":null,"userId":{"$ne":null}}',
    b'{"apiKeyId":"1","permission":"x","domain":null,"userId":["u"]}',
    b'{"apiKeyId":1,"permission":"x","domain":null,"userId":"u"}',
    b'{"apiKeyId":"1","permission":true,"domain":null,"userId":"u"}',
    b'{"apiKeyId":"1","permission":"x","domain":0,"userId":"u"}',
    b'{"apiKeyId":"1","permission":"x","domain":null,"userId":"u"',
    b'{"apiKeyId":"1","permission":"x","domain":null,"userId":"\\ud800"}',
    b'"userId"',
    b"1e999999",
    b"NaN",
    b"\0" * 1_000_000,
]


def test_hostile_entries_neither_admit_nor_refuse_a_key(relay: Relay, api_key: NewApiKey, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as shared:
        for number, document in enumerate(HOSTILE):
            wrong = f"os_live_wrong_{number % 3}"
            for token in (wrong, api_key.token):
                shared.set(f"auth:apikey:{hashlib.sha256(token.encode()).hexdigest()}", document)
            with relay.client(api_key.token) as client:
                client.sendmail(
                    "ann@example.com", ["to@x.example"], b"From: ann@example.com\r\nTo: to@x.example\r\n\r\nx"
                )
            if number < 3:
                with relay.client() as client, pytest.raises(smtplib.SMTPAuthenticationError):
                    client.login("any", wrong)
    assert "Traceback" not in relay.log
