"""Bugs inside a running relay, with keys, addresses and mails at hand: the client hears 451, the log and Sentry learn
where it was, and neither learns with what.

The relay is the real one. Its interpreter finds a `sitecustomize` of ours, which puts a bug into some of its functions.
"""

from __future__ import annotations

import base64
import json
import os
import smtplib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.database import NewApiKey
from tests.support.relay_process import Relay
from tests.support.sentry_endpoint import Endpoint

#: In every part of a mail, and in the envelope.
PLANTED = "planted5e1f"

#: Each bug has the secrets in its local variables, in its text, and in the text of what it comes from.
BUGS = """
import importlib.abc
import importlib.machinery
import sys


class Bug(Exception):
    def __str__(self):
        return repr(self.args)

    __repr__ = __str__


def raise_with(kind, secret):
    line = text = f"with {secret}"
    try:
        {}[text]
    except KeyError as error:
        # Of a type of its own: the same report goes to Sentry once in a while.
        raise type(kind, (Bug,), {})(line, secret) from error


def in_policy(module):
    original = module.recipients_of

    def recipients_of(message, recipients, rule):
        if "bug in policy" in message.subject:
            subject, body, addresses = message.subject, message.text, (message.to, recipients)
            raise_with("PolicyBug", (subject, body, addresses))
        return original(message, recipients, rule)

    module.recipients_of = recipients_of


def in_content(module):
    original = module.read

    def read(raw, root, limits):
        if b"bug in content" in raw:
            raw.decode("ascii")  # its error holds all of the message
        return original(raw, root, limits)

    module.read = read


def in_gate(module):
    original = module.IntakeServices.authenticate

    def authenticate(self, password):
        if password.endswith("bug"):
            token = password
            raise_with("GateBug", token)
        return original(self, password)

    module.IntakeServices.authenticate = authenticate


def in_transaction(module):
    original = module.Transaction.add_recipient

    def add_recipient(self, argument):
        if "bug" in argument:
            path = argument
            raise_with("TransactionBug", path)
        return original(self, argument)

    module.Transaction.add_recipient = add_recipient


BUGS = {
    "relay.intake.policy": in_policy,
    "relay.mail.body": in_content,
    "relay.intake.services": in_gate,
    "relay.smtp.transaction": in_transaction,
}


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in BUGS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            BUGS[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A Sentry."""
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def message(subject: str, *, octets: int = 0) -> bytes:
    return (
        f"From: {PLANTED} <ann@{PLANTED}.example>\r\nTo: to@{PLANTED}.example\r\nSubject: {PLANTED} {subject}\r\n"
        f"X-Own: {PLANTED}\r\n\r\n{PLANTED} \xe4\r\n".encode("latin-1")
        + b"filler\r\n" * (octets // 8)
    )


def test_an_unexpected_error_is_451_and_no_report_holds_content(
    start_relay: Callable[..., Relay],
    postgres_url: str,
    redis_url: str,
    api_key: NewApiKey,
    endpoint: Endpoint,
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUGS)
    relay = start_relay(
        DATABASE_URL=postgres_url,
        REDIS_URL=redis_url,
        SENTRY_DSN=endpoint.dsn,
        SMTP_RELAY_LOG_LEVEL="debug",
        SMTP_RELAY_SPOOL_THRESHOLD_BYTES="20000",
        PYTHONPATH=os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))),
    )
    wrong = f"os_live_{PLANTED}_bug"
    envelope = f"ann@{PLANTED}.example", [f"envelope@{PLANTED}.example"]
    with relay.client() as client:
        client.user, client.password = PLANTED, wrong
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client.auth("PLAIN", client.auth_plain)
        assert refused.value.smtp_code == 451
        client.login(PLANTED, api_key.token)
        # The dialogue goes on after each, with what was begun forgotten.
        for raw in (message("bug in policy"), message("bug in content"), message("bug in policy", octets=50_000)):
            with pytest.raises(smtplib.SMTPDataError) as failed:
                client.sendmail(*envelope, raw)
            assert (failed.value.smtp_code, failed.value.smtp_error[:5]) == (451, b"4.3.0")
        client.docmd("MAIL", f"FROM:<ann@{PLANTED}.example>")
        assert client.docmd("RCPT", f"TO:<bug@{PLANTED}.example>")[0] == 451
        assert client.docmd("RCPT", f"TO:<to@{PLANTED}.example>")[0] == 451
        assert client.sendmail(*envelope, message("sound")) == {}
    wait_for(lambda: len(endpoint.events) >= 5)

    events = endpoint.events
    assert {event["logentry"]["message"] for event in events} == {"unexpected_error"}
    kinds = Counter(tuple(value["type"] for value in event["exception"]["values"]) for event in events)
    assert kinds == {
        ("KeyError", "GateBug"): 1,
        ("KeyError", "PolicyBug"): 2,  # in the worker, and in the process for large messages
        ("KeyError", "TransactionBug"): 1,
        ("UnicodeDecodeError",): 1,
    }
    places = {
        frame["function"] for event in events for value in event["exception"]["values"] for frame in places_of(value)
    }
    assert {"authenticate", "recipients_of", "read", "add_recipient"} <= places
    lines = [json.loads(line) for line in relay.log.splitlines()]
    failures = [line for line in lines if line["event"] == "unexpected_error"]
    assert len(failures) == 5
    assert all(line["error"].endswith(("Bug from KeyError", "UnicodeDecodeError")) for line in failures)
    assert all(line["traceback"] for line in failures)
    plain = base64.b64encode(f"\0{PLANTED}\0{wrong}".encode()).decode()
    for said in (relay.log, b"\n".join(endpoint.bodies).decode()):
        for secret in (PLANTED, wrong, plain, api_key.token, api_key.token.removeprefix("os_live_"), "os_live", "@"):
            assert secret not in said.replace("opensend-relay@", "")


def places_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Where an exception was on its way, and nothing else."""
    frames: list[dict[str, Any]] = value["stacktrace"]["frames"]
    assert all(frame.keys() <= {"filename", "module", "function", "lineno", "in_app"} for frame in frames)
    assert value["value"] == ""
    return frames


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
