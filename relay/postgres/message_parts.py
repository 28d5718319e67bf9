"""The parts of one message that has an idempotency key: which recipients have it, and what the next part's key is.

A message may come in any number of transactions, and each may take several rows. The first row has the message's key,
as OpenSend's REST API would store it; row number n of the message, from 2 on, has the key `<id of the first row>#n`. So
the unique index (user_id, idempotency_key) puts the rows in one order, whichever process stores them: a part goes in
behind all rows that it has seen, or not at all, and the slower of two sees more when it looks again. The keys of
further rows end with the first one: they name it, and a message that gets the key later has another id.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Final

from relay.core.address import comparison_form
from relay.core.frozen import frozen
from relay.core.records import EmailRow
from relay.postgres.driver import Cursor
from relay.postgres.insert_emails import storable_text

#: How many further rows are asked for at a time, at first. Most messages have fewer.
_FIRST_LOOK: Final = 128
#: By how much each further look is larger.
_GROWTH: Final = 8

# What is compared is what makes it another message for its readers. Not the attachments: tens of megabytes.
_FIRST_ROW: Final = """
SELECT id, "to", cc, bcc,
       sha256(convert_to(subject, 'UTF8')) || sha256(convert_to(coalesce(html, ''), 'UTF8'))
       || sha256(convert_to(coalesce(text, ''), 'UTF8')) = %s
  FROM emails WHERE user_id = %s AND idempotency_key = %s"""
_FURTHER_ROWS: Final = """
SELECT idempotency_key, "to", cc, bcc FROM emails WHERE user_id = %s AND idempotency_key = ANY (%s)"""


@frozen
class EarlierParts:
    """What has been stored under an idempotency key."""

    #: Of the first row, which has the key itself.
    first_id: str
    #: Whether it is the same message. Another one under this key stores nothing.
    same_message: bool
    #: The recipients of all the rows, in comparison form.
    mailboxes: frozenset[str]
    #: How many rows there are; the next one is number `rows + 1`.
    rows: int


def part_key(first_id: str, number: int) -> str:
    """The idempotency key of a message's row `number`, from 2 on. `first_id`: the id of the first row."""
    return f"{first_id}#{number}"


def part_keys(key: str | None, first_id: str, rows: int = 0) -> Iterator[str | None]:
    """The idempotency keys of a message's next rows, without end, where it has `rows` rows already.

    `key`: the message's own; None: it has none, and neither has any row. `first_id`: see `part_key`.
    """
    if key is None:
        return itertools.repeat(None)
    further = (part_key(first_id, number) for number in itertools.count(max(rows, 1) + 1))
    return further if rows else itertools.chain([key], further)


def find_parts(cursor: Cursor, user_id: str, key: str, row: EmailRow) -> EarlierParts | None:
    """What there is under the user's key; None: nothing. `row` says what the message is."""
    digests = b"".join(
        hashlib.sha256(storable_text(text).encode()).digest() for text in (row.subject, row.html, row.text)
    )
    cursor.execute(_FIRST_ROW, (digests, user_id, storable_text(key)))
    found = cursor.fetchone()
    if found is None:
        return None
    first_id, *recipients, same = found
    if not same:
        return EarlierParts(first_id, same_message=False, mailboxes=frozenset(), rows=1)
    mailboxes = _mailboxes(recipients)
    rows, asked, size = 1, 1, _FIRST_LOOK
    while True:
        numbers = {part_key(first_id, number): number for number in range(asked + 1, asked + size + 1)}
        cursor.execute(_FURTHER_ROWS, (user_id, list(numbers)))
        for found_key, *recipients in cursor:
            rows = max(rows, numbers[found_key])
            mailboxes |= _mailboxes(recipients)
        asked += size
        # Rows can be deleted, so a gap is no end; but half of a look without any row is.
        if rows <= asked - size // 2:
            break
        size *= _GROWTH
    return EarlierParts(first_id, same_message=True, mailboxes=frozenset(mailboxes), rows=rows)


def _mailboxes(fields: list[object]) -> set[str]:
    """The recipients in these columns. Other programs write rows too: what is no text in a list is left out."""
    lists = [column for column in fields if isinstance(column, list)]
    return {comparison_form(address) for addresses in lists for address in addresses if isinstance(address, str)}
