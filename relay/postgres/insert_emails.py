"""The INSERTs of the accept path: rows as JSON, and the statements that take many of them (contract section 3).

A message's document is sent once, in its first row. Its further rows differ in recipients, id and key: Postgres copies
the rest from the first one, value by value as they lie in the table, so that neither the wire nor the memory of either
side holds more for a thousand recipients than for one.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import orjson

from relay.core.records import EmailRow, StoredAttachment
from relay.core.spellings import spellings
from relay.postgres.driver import Cursor

# The guard is a scalar subquery for each recipient on purpose: the planner can't turn it into a join that reads a
# user's whole list, and estimates one row at most. With `email = ANY (guard)` it expects ten, and reads a
# table of up to a thousand rows from the beginning: 0.09 ms a message, 10 ms for one with a thousand recipients.
# ON CONFLICT covers ids that are there already (this is a second try) and idempotency keys.
_INSERT: Final = """
INSERT INTO emails (id, "from", "to", cc, bcc, reply_to, subject, html, text, headers, attachments, tags, user_id,
                    idempotency_key)
SELECT r.id, r."from", r."to", r.cc, r.bcc, r.reply_to, r.subject, {html}, {text}, r.headers, r.attachments, r.tags,
       r.user_id, r.idempotency_key
  FROM json_to_recordset({rows}) AS r(
       id uuid, "from" text, "to" jsonb, cc jsonb, bcc jsonb, reply_to jsonb, subject text, html text, text text,
       headers jsonb, attachments jsonb, tags jsonb, user_id text, idempotency_key text, guard text[])
 WHERE (SELECT bool_or((SELECT true FROM email_suppressions s WHERE s.user_id = r.user_id AND s.email = g.email))
          FROM unnest(r.guard) AS g(email)) IS NULL
    ON CONFLICT DO NOTHING"""
_COPY: Final = """
INSERT INTO emails (id, "from", "to", cc, bcc, reply_to, subject, html, text, headers, attachments, tags, user_id,
                    idempotency_key)
SELECT r.id, e."from", r."to", r.cc, r.bcc, e.reply_to, e.subject, e.html, e.text, e.headers, e.attachments, e.tags,
       e.user_id, r.idempotency_key
  FROM emails e, json_to_recordset({rows}) AS r(id uuid, "to" jsonb, cc jsonb, bcc jsonb, idempotency_key text)
 WHERE e.id = '{first}'
    ON CONFLICT DO NOTHING"""
_PREPARED_NAME: Final = "opensend_relay_insert_1"
_WITH_TEXTS: Final = _INSERT.replace("{html}", "r.html").replace("{text}", "r.text")
PREPARE: Final = f"PREPARE {_PREPARED_NAME} (json) AS {_WITH_TEXTS.format(rows='$1')}"
_EXECUTE: Final = f"EXECUTE {_PREPARED_NAME}(".encode()
#: Octets of a payload that are searched as quickly as the texts that it is made of.
_SMALL: Final = 4096
_HEAD, _, _TAIL = (part.encode() for part in _WITH_TEXTS.partition("{rows}"))
#: The same around the texts and the rows.
_AROUND: Final = [part.encode() for part in re.split(r"{html}|{text}|{rows}", _INSERT)]


def insert(cursor: Cursor, payloads: Sequence[bytes]) -> int:
    """How many of these rows (each payload from `encode`) went in: the guard and conflicts keep some out."""
    cursor.execute(_statement(_HEAD, payloads, _TAIL))
    return int(cursor.rowcount)


def execute_prepared(cursor: Cursor, payloads: Sequence[bytes]) -> int:
    """The same in a session that has carried out PREPARE."""
    cursor.execute(_statement(_EXECUTE, payloads, b")"))
    return int(cursor.rowcount)


def insert_statement(cursor: Cursor, statement: bytes) -> int:
    """The same for one row that `encode_statement` has made a statement of."""
    cursor.execute(statement)
    return int(cursor.rowcount)


def copy(cursor: Cursor, first_id: str, further_rows: bytes) -> int:
    """How many further rows of a message went in. `further_rows`: from `encode_further`; the first row is there."""
    head, _, tail = _COPY.replace("{first}", first_id).partition("{rows}")
    cursor.execute(_statement(head.encode(), [further_rows], tail.encode()))
    return int(cursor.rowcount)


def encode(row: EmailRow, recipients: Collection[str]) -> bytes:
    """The first row of a message as a JSON object. `recipients`: all of the message's, for the guard.

    NULs and lone surrogates are dropped.
    """
    document = _document(row)
    document["guard"] = [spelling for recipient in recipients for spelling in spellings(recipient)]
    try:
        payload = orjson.dumps(document)
        if not _holds_nul(row, recipients, payload):
            return payload
    except orjson.JSONEncodeError:
        pass
    return orjson.dumps(_storable(document))


def encode_statement(row: EmailRow, recipients: Collection[str]) -> bytes:
    """As `encode`, for a large row: the whole statement, with the texts in separate literals.

    They are sent as they are. In JSON a control character takes six octets, a quote or a line end two, and what takes
    six octets here takes as many in the server, and a second copy of them.
    """
    html, text = (_utf_8(each) for each in (row.html, row.text))
    rest = encode(replace(row, html="", text=""), recipients)
    tag = _tag((html, text, rest))
    before, between, after, end = _AROUND
    return b"".join(
        (before, tag, html, tag, between, tag, text, tag, after, tag, b"[", rest, b"]", tag, b"::json", end)
    )


def encode_further(rows: Sequence[EmailRow]) -> bytes:
    """What the further rows of a message have for themselves, as JSON objects with commas between them."""
    return b",".join([orjson.dumps(_storable(_own_part(row))) for row in rows])


def _holds_nul(row: EmailRow, recipients: Collection[str], payload: bytes) -> bool:
    """Whether any text among these has a NUL. `payload`: the same as JSON.

    A search for the escape in a large payload takes 1 ns an octet, most of them Base64, which can't have any; a search
    for the character in the texts themselves takes a hundredth of that.
    """
    if len(payload) < _SMALL:
        return b"\\u0000" in payload
    texts = itertools.chain(recipients, _texts(row))
    return any("\0" in text for text in texts)


def _texts(row: EmailRow) -> Iterator[str]:
    """Everything in a row that came with the message, but for the content of attachments."""
    yield from (row.sender, row.subject, row.html, row.text, row.idempotency_key or "")
    for addresses in (row.to, row.cc, row.bcc, row.reply_to):
        yield from addresses
    yield from row.headers
    yield from row.headers.values()
    for attachment in row.attachments:
        yield from (attachment.filename, attachment.content_type or "", attachment.content_id or "")
    for tag in row.tags:
        yield from tag


def _statement(head: bytes, payloads: Sequence[bytes], tail: bytes) -> bytes:
    """The payloads as a JSON array in a dollar-quoted literal, put together in one step: it may be 50 MB.

    The server takes what is in such a literal as it is, so there is no search for quotes in it, which would block the
    hub for 3 ms a megabyte. The tag can't be guessed, and isn't in there.
    """
    tag = _tag(payloads)
    parts = [head, tag, b"["]
    for payload in payloads:
        parts += (payload, b",")
    parts[-1] = b"]"
    parts += (tag, b"::json", tail)
    return b"".join(parts)


def _tag(texts: Sequence[bytes]) -> bytes:
    """What begins and ends a literal, and is in none of these."""
    while True:
        tag = b"$r%b$" % secrets.token_hex(12).encode()
        # In most there is no dollar sign, which is found out ten times as fast.
        if not any(b"$" in text and tag in text for text in texts):
            return tag


def _utf_8(text: str) -> bytes:
    """The octets of a text, without what Postgres can't hold."""
    if "\0" not in text:
        try:
            return text.encode()
        except UnicodeEncodeError:
            pass
    return storable_text(text).encode()


def _document(row: EmailRow) -> dict[str, object]:
    return {
        "id": row.id,
        "from": row.sender,
        "to": row.to,
        "cc": row.cc,
        "bcc": row.bcc,
        "reply_to": row.reply_to,
        "subject": row.subject,
        "html": row.html,
        "text": row.text,
        "headers": row.headers,
        "attachments": [_attachment(attachment) for attachment in row.attachments],
        "tags": [{"name": name, "value": value} for name, value in row.tags],
        "user_id": row.user_id,
        "idempotency_key": row.idempotency_key,
    }


def _own_part(row: EmailRow) -> dict[str, object]:
    return {"id": row.id, "to": row.to, "cc": row.cc, "bcc": row.bcc, "idempotency_key": row.idempotency_key}


def _attachment(attachment: StoredAttachment) -> dict[str, str]:
    document = {"filename": attachment.filename, "content": attachment.content}
    if attachment.content_type is not None:
        document["content_type"] = attachment.content_type
    if attachment.content_id is not None:
        document["content_id"] = attachment.content_id
    return document


def storable_text(text: str) -> str:
    """The text as Postgres holds it: without NULs and halves of surrogate pairs."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode()


def _storable(value: object) -> object:
    """The same without what Postgres can't hold: NUL, and halves of surrogate pairs. Seldom needed, hence slow."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, Mapping):
        return {_storable(name): _storable(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(member) for member in value]
    return value
