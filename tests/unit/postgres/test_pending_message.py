"""Which messages share a statement, and how much time they have: by their size and the number of their rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.core.records import EmailRow, StoredAttachment
from relay.postgres.pending_message import PendingMessage

DEADLINE = 1000.0


def row(number: int = 0, *, text: str = "Hi", attachment: int = 0, key: str | None = None) -> EmailRow:
    return EmailRow(
        id=f"00000000-0000-4000-8000-{number:012}",
        user_id="user",
        sender="ann@example.com",
        to=(f"{number}@x.example",),
        cc=(),
        bcc=(),
        reply_to=(),
        subject="Hello",
        html="",
        text=text,
        headers={},
        attachments=(StoredAttachment("a.bin", "A" * attachment),) if attachment else (),
        tags=(),
        idempotency_key=key,
    )


def pending(*rows: EmailRow) -> PendingMessage:
    return PendingMessage(rows, [row.to[0] for row in rows], DEADLINE)


@pytest.mark.parametrize(
    ("message", "alone", "large"),
    [
        (pending(row()), False, False),
        (pending(row(attachment=900_000)), False, False),
        (pending(row(attachment=1_000_000)), True, False),
        (pending(row(text="x" * 1_000_000)), True, False),
        # What counts is what is sent: six octets for each of these characters.
        (pending(row(text="\x01" * 400_000)), True, False),
        (pending(row(), row(1)), True, False),
        (pending(row(attachment=4_000_000)), True, True),
    ],
)
def test_who_goes_alone_and_who_is_large(message: PendingMessage, alone: bool, large: bool) -> None:
    assert (message.alone, message.large) == (alone, large)


@pytest.mark.parametrize(
    "large",
    [row(text="x" * 1_000_000), replace(row(), html="x" * 1_000_000), row(attachment=1_000_000)],
    ids=["text", "html", "attachment"],
)
def test_a_large_message_is_written_as_a_statement_once(large: EmailRow) -> None:
    # Else each of the two tries would make a copy of it as a statement.
    assert pending(large).statement
    assert not pending(row(attachment=900_000)).statement


def test_only_a_message_that_goes_alone_has_more_time() -> None:
    assert pending(row(attachment=900_000)).deadline == DEADLINE
    assert pending(row(), row(1)).deadline < DEADLINE + 0.1
    whole = pending(row(attachment=40_000_000)).deadline - DEADLINE
    assert 10.0 <= whole < 10.1
    # Postgres copies each further row.
    assert pending(*(row(number, attachment=40_000_000) for number in range(3))).deadline - DEADLINE >= whole + 5.0


def test_statements_lock_their_keys_in_one_order() -> None:
    messages = [pending(row(number, key=key)) for number, key in enumerate(["b", None, "a", "c"])]
    assert [message.key for message in sorted(messages, key=lambda message: message.order)] == [None, "a", "b", "c"]


def test_the_second_try_has_the_same_ids_and_an_answer_of_its_own() -> None:
    first = pending(row(), row(1))
    first.done.set(None)
    again = first.again()
    assert (again.ids, again.payload, again.further_rows) == (first.ids, first.payload, first.further_rows)
    assert not again.done.settled
