"""Rows as JSON: whatever text comes, what is written is JSON that Postgres takes, and the same text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.records import EmailRow, StoredAttachment
from relay.core.spellings import spellings
from relay.postgres import insert_emails
from relay.postgres.insert_emails import encode, encode_further, encode_statement

texts = st.text()
hostile = st.one_of(texts, st.text(alphabet="\0\ud800\udfff\\u0$'\"r;-\n"))


def row(**columns: Any) -> EmailRow:
    defaults: dict[str, Any] = {
        "id": "id",
        "user_id": "user",
        "sender": "a@x",
        "to": (),
        "cc": (),
        "bcc": (),
        "reply_to": (),
        "subject": "",
        "html": "",
        "text": "",
        "headers": {},
        "attachments": (),
        "tags": (),
    }
    return EmailRow(**(defaults | columns))


def cleaned(text: str) -> str:
    return "".join(character for character in text if character != "\0" and not "\ud800" <= character <= "\udfff")


@pytest.mark.parametrize("small", [0, 1_000_000])
@given(hostile, hostile, hostile, st.dictionaries(texts, hostile), st.lists(hostile), hostile)
def test_every_text_comes_through_but_for_what_postgres_cannot_hold(
    small: int, subject: str, html: str, text: str, headers: dict[str, str], recipients: list[str], name: str
) -> None:
    """`small`: the payload from which on the texts are searched instead."""
    given_row = row(
        subject=subject,
        html=html,
        text=text,
        headers=headers,
        attachments=(StoredAttachment(name, "aGk="),),
        tags=(("name", "value"),),
        idempotency_key="key",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(insert_emails, "_SMALL", small)
        (document,) = json.loads(b"[" + encode(given_row, recipients) + b"]")
    assert document["subject"] == cleaned(subject)
    assert document["html"] == cleaned(html)
    assert document["text"] == cleaned(text)
    assert document["headers"] == {cleaned(header): cleaned(value) for header, value in headers.items()}
    assert document["guard"] == [cleaned(form) for recipient in recipients for form in spellings(recipient)]
    assert document["attachments"] == [{"filename": cleaned(name), "content": "aGk="}]
    assert document["tags"] == [{"name": "name", "value": "value"}]
    assert document["idempotency_key"] == "key"


def test_a_document_is_sent_once_and_further_rows_are_their_own_part() -> None:
    document = json.loads(encode(row(idempotency_key="key", text="long"), ["a@x", "b@x"]))
    assert document["guard"] == ["a@x", "a@x.", "b@x", "b@x."]
    assert document["idempotency_key"] == "key"
    further = [row(to=(f"{number}\0@x",), text="long", idempotency_key=f"id#{number}") for number in (2, 3)]
    assert json.loads(b"[" + encode_further(further) + b"]") == [
        {"id": "id", "to": [f"{number}@x"], "cc": [], "bcc": [], "idempotency_key": f"id#{number}"} for number in (2, 3)
    ]


@given(hostile, hostile, hostile)
def test_a_large_row_is_a_statement_with_its_texts_as_they_are(html: str, text: str, subject: str) -> None:
    """What Postgres makes of it: see tests/integration/storage/test_large_rows.py."""
    statement = encode_statement(row(html=html, text=text, subject=subject, idempotency_key="key"), ["a@x"])
    before = insert_emails._INSERT.partition("{html}")[0].encode()
    tag = statement.removeprefix(before)[:27]
    assert statement.startswith(before)
    assert statement.count(tag) == 6
    _, first, _, second, _, third, end = statement.split(tag)
    assert (first.decode(), second.decode()) == (cleaned(html), cleaned(text))
    (document,) = json.loads(third)
    assert document == json.loads(encode(row(subject=subject, idempotency_key="key"), ["a@x"]))
    assert end.startswith(b"::json) AS r(")


@given(st.lists(st.binary(), min_size=1))
def test_no_payload_ends_its_literal_early(payloads: list[bytes]) -> None:
    statement = insert_emails._statement(b"HEAD(", payloads, b")TAIL")
    body = statement.removeprefix(b"HEAD(").removesuffix(b"::json)TAIL")
    tag = body[: body.index(b"$", 1) + 1]
    assert body == tag + b"[" + b",".join(payloads) + b"]" + tag
    assert body.count(tag) == 2


def test_a_tag_that_is_in_a_text_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(("a" * 24, "b" * 24))
    monkeypatch.setattr(insert_emails.secrets, "token_hex", lambda _size: next(names))
    assert insert_emails._tag([b"x", b"$r" + b"a" * 24 + b"$"]) == b"$r" + b"b" * 24 + b"$"
