"""What a webhook gets, as a value that Node's crypto signed has it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from relay.delivery.webhook_message import message, signature, type_of


def test_the_signature_is_that_of_node() -> None:
    """createHmac("sha256", "c2Vj=") of the same text: the secret is no Base64, whatever it looks like."""
    content = 'whd_x_1.1700000000.{"a":"ä"}'.encode()
    assert signature("whsec_c2Vj=", content) == "v1,lty3MqeqOL+qp2I7dzfXelez3kCT9B74YWcArmKirzs="
    assert signature("c2Vj=", content) == signature("whsec_c2Vj=", content)


def test_what_is_signed_is_what_is_sent() -> None:
    now = datetime(2026, 11, 27, 10, 0, 0, 999_999, timezone(timedelta(hours=2)))
    made = message(delivery_id="d", attempt=3, kind="email.sent", payload='{"n": 1.50}', secret="s", now=now)
    assert made.body == (
        b'{"id":"whd_d_3","type":"email.sent","created_at":"2026-11-27T08:00:00.999Z","data":{"n": 1.50}}'
    )
    assert json.loads(made.body)["data"] == {"n": 1.5}
    timestamp = str(int(now.astimezone(UTC).timestamp()))
    assert (made.fields["svix-id"], made.fields["svix-timestamp"]) == ("whd_d_3", timestamp)
    assert made.fields["svix-signature"] == signature("s", f"whd_d_3.{timestamp}.".encode() + made.body)


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("sent", "email.sent"),
        ("delivery_delayed", "email.delivery_delayed"),
        ("email.opened", "email.opened"),
        ("contact.deleted", "contact.deleted"),
        ("domain.updated", "domain.updated"),
        ("unheard_of", None),
        ("email.unheard_of", None),
        ("contact.sent", None),
        ("", None),
        (".", None),
        ("SENT", None),
    ],
)
def test_types(kind: str, known: str | None) -> None:
    assert type_of(kind) == known
