"""What is filled by position, for speed: each field is given a different value, and is found where it belongs.

`python -m tests.unit.test_field_order` measures what names would cost.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import timeit
from typing import Any

from relay.core.records import EmailRow, StoredAttachment
from relay.intake import policy
from relay.intake.policy import Recipients
from relay.mail.message import Message
from relay.mail.reader import DEFAULT_LIMITS, parse
from relay.postgres.insert_emails import encode

RAW = b"""\
From: From <from@from.example>\r
Sender: sender@sender.example\r
To: to@to.example, nobody, nothing\r
Cc: cc@cc.example\r
Bcc: bcc@bcc.example\r
Reply-To: reply@reply.example\r
Subject: the subject\r
Message-ID: <the-message-id@x.example>\r
Idempotency-Key: the-idempotency-key\r
X-OpenSend-Tag: tag=value\r
X-Mine: the header\r
%s\
MIME-Version: 1.0\r
Content-Type: multipart/mixed; boundary=b\r
\r
--b\r
Content-Type: multipart/alternative; boundary=c\r
\r
--c\r
Content-Type: text/x-amp-html\r
\r
<html amp4email></html>\r
--c\r
Content-Type: text/plain\r
\r
the text\r
--c\r
Content-Type: text/html\r
\r
<p>the html</p>\r
--c--\r
--b\r
Content-Type: application/pdf\r
Content-Disposition: attachment; filename=the-file.pdf\r
\r
the content\r
--b--\r
""" % b"".join(b"X-Many-%d: x\r\n" % number for number in range(20))


def filled_message() -> Message:
    """A message in which no field has the value of another, or its default."""
    return parse(RAW, DEFAULT_LIMITS)


def values_of(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}


def test_each_field_of_a_message_has_its_own_value() -> None:
    found = values_of(filled_message())
    assert found["text"].strip() == "the text"
    assert found["html"].strip() == "<p>the html</p>"
    assert found["headers"]["X-Mine"] == "the header"
    assert found["attachments"][0].filename == "the-file.pdf"
    assert found["dropped_headers"]
    assert all(name.startswith("X-Many-") for name in found["dropped_headers"])
    assert len(found["dropped_headers"]) != found["left_out"]
    plain = {
        "sender": "From <from@from.example>",
        "from_addresses": ("from@from.example",),
        "to": ("to@to.example",),
        "cc": ("cc@cc.example",),
        "bcc": ("bcc@bcc.example",),
        "reply_to": ("reply@reply.example",),
        "subject": "the subject",
        "message_id": "<the-message-id@x.example>",
        "idempotency_key": "the-idempotency-key",
        "tags": (("tag", "value"),),
        "parser": "shortcut",
        "left_out": 2,
        "header_senders": {"sender": ("sender@sender.example",)},
        "dropped_parts": 1,
    }
    assert {name: found[name] for name in plain} == plain
    looked_at = plain.keys() | {"text", "html", "headers", "attachments", "dropped_headers"}
    assert looked_at == found.keys(), "a new field needs a value here"


def stored(message: Message) -> EmailRow:
    everyone = Recipients(to=message.to, cc=message.cc, bcc=message.bcc)
    (row,) = policy.rows(message, everyone, user_id="the-user", ids=["the-id"], keys=[message.idempotency_key])
    return row


def test_each_field_of_a_row_has_its_own_value() -> None:
    message = filled_message()
    of_message = values_of(message)
    for name, value in values_of(stored(message)).items():
        assert value == {"id": "the-id", "user_id": "the-user"}.get(name, of_message.get(name)), name
    distinct = [json.dumps(value, default=repr) for value in values_of(stored(message)).values()]
    assert len(set(distinct)) == len(distinct)


def test_each_column_of_a_row_has_its_own_value() -> None:
    message = dataclasses.replace(
        filled_message(),
        headers={"X-Mine": "the header"},
        attachments=(StoredAttachment("the-file", content="Yw==", content_type="a/b", content_id="the-content-id"),),
    )
    document = json.loads(encode(stored(message), ("to@to.example",)))
    assert document.pop("guard")
    assert document == {
        "id": "the-id",
        "user_id": "the-user",
        "from": message.sender,
        "to": ["to@to.example"],
        "cc": ["cc@cc.example"],
        "bcc": ["bcc@bcc.example"],
        "reply_to": ["reply@reply.example"],
        "subject": "the subject",
        "html": message.html,
        "text": message.text,
        "headers": {"X-Mine": "the header"},
        "attachments": [
            {"filename": "the-file", "content": "Yw==", "content_type": "a/b", "content_id": "the-content-id"}
        ],
        "tags": [{"name": "tag", "value": "value"}],
        "idempotency_key": "the-idempotency-key",
    }


def test_recipients_stay_in_their_fields_however_they_are_divided() -> None:
    fields = {name: tuple(f"{name}{number}@x.example" for number in range(70)) for name in ("to", "cc", "bcc")}
    everyone = Recipients(**fields)
    assert values_of(everyone.only(everyone.mailboxes())) | {"_mailboxes": ()} == fields | {"_mailboxes": ()}
    portions = everyone.portions(50)
    assert len(portions) == 5
    for name, addresses in fields.items():
        assert tuple(address for portion in portions for address in getattr(portion, name)) == addresses


def main() -> None:
    """Prints the time that an object takes by position and by name."""
    message = filled_message()
    for instance in (stored(message), message):
        kind, names = type(instance), [field.name for field in dataclasses.fields(instance)]
        given = {f"v{number}": getattr(instance, name) for number, name in enumerate(names)} | {"kind": kind}
        for how, call in (
            ("by position", f"kind({', '.join(f'v{number}' for number in range(len(names)))})"),
            ("by name", f"kind({', '.join(f'{name}=v{number}' for number, name in enumerate(names))})"),
        ):
            # Short pieces, of which the shortest counts: other processes take the processor for milliseconds.
            seconds = min(timeit.repeat(call, globals=given, number=200, repeat=1000)) / 200
            sys.stdout.write(f"{kind.__name__} {how}: {seconds * 1e6:.1f} µs\n")


if __name__ == "__main__":
    main()
