"""The request and the verifier of docs/webhooks.md fit each other, and what the delivery worker sends."""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from types import SimpleNamespace

from relay.delivery.webhook_message import WebhookMessage, message

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "webhooks.md").read_text("utf-8")
SECRET = "whsec_example"
SENT = datetime(2026, 11, 27, 12, 0, 0, tzinfo=UTC)


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def of_the_page() -> tuple[dict[str, str], bytes]:
    """The header fields of the example, and its body."""
    head, body = block("http").split("\n\n")
    return dict(HeaderParser().parsestr(head.partition("\n")[2]).items()), body.rstrip("\n").encode()


def verifier(now: float) -> Callable[[str, Mapping[str, str], bytes], bool]:
    """The page's function, at this time."""
    names = {"base64": base64, "hmac": hmac, "Mapping": Mapping, "time": SimpleNamespace(time=lambda: now)}
    exec(block("python"), names)
    found: Callable[[str, Mapping[str, str], bytes], bool] = names["is_genuine"]  # type: ignore[assignment]
    return found


def sent(body: bytes) -> WebhookMessage:
    """What is sent for the event of the example."""
    event = json.loads(body)
    _, delivery_id, attempt = event["id"].split("_")
    payload = json.dumps(event["data"], separators=(",", ":"))
    return message(
        delivery_id=delivery_id, attempt=int(attempt), kind=event["type"], payload=payload, secret=SECRET, now=SENT
    )


def test_the_example_is_what_arrives() -> None:
    fields, body = of_the_page()
    made = sent(body)
    assert made.body == body
    assert fields == {name: made.fields[name] for name in fields}


def test_the_verifier_of_the_page_takes_it_and_nothing_else() -> None:
    fields, body = of_the_page()
    now = SENT.timestamp()
    assert verifier(now)(SECRET, fields, body)
    assert not verifier(now)(SECRET, fields, body + b" ")
    assert not verifier(now)("whsec_another", fields, body)
    assert not verifier(now + 301)(SECRET, fields, body)
    assert not verifier(now)(SECRET, {**fields, "svix-id": "whd_another_1"}, body)
