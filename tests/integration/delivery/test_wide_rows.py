"""Rows that hold more than a claim may bring, or what Python can't read, in any of their columns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from relay.delivery.deliverer import Deliverer
from relay.delivery.row import Flaw, email_of
from relay.delivery.ses_provider import SesProvider
from relay.postgres.outgoing import HELD_OCTETS, Outgoing
from scripts.services import Ses

Query = Callable[..., list[tuple[Any, ...]]]
#: Octets of a value; Postgres stores what repeats itself in a hundredth of them.
WIDE = 3_000_000


def _text(*, repeats: bool) -> str:
    return "wide " * (WIDE // 5) if repeats else random.Random(1).randbytes(WIDE // 2).hex()


def _base64(*, repeats: bool) -> str:
    return "QUFB" * (WIDE // 4) if repeats else _text(repeats=False)


def _people(*, repeats: bool) -> list[str]:
    generator = random.Random(2)
    return ["a@x.example" if repeats else f"{generator.randbytes(20).hex()}@x.example" for _ in range(WIDE // 30)]


#: Wide values of each column that may be of any length, and what becomes of a mail with one.
WIDE_COLUMNS: dict[str, tuple[Callable[..., Any], str]] = {
    "to": (_people, "HeaderTooLarge"),
    "cc": (_people, "HeaderTooLarge"),
    "bcc": (_people, "HeaderTooLarge"),
    "reply_to": (_people, "HeaderTooLarge"),
    "subject": (_text, "HeaderTooLarge"),
    "headers": (lambda *, repeats: {"X-Wide": _text(repeats=repeats)}, "HeaderTooLarge"),
    "html": (_text, ""),
    "text": (_text, ""),
    "attachments": (
        lambda *, repeats: [
            {"filename": "a.txt", "content": "QUFB" * (WIDE // 4) if repeats else _text(repeats=False)}
        ],
        "",
    ),
}


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("column", WIDE_COLUMNS)
def test_no_claim_brings_more_than_its_bound_whatever_a_row_holds(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    ses: Ses,
    query: Query,
    column: str,
    repeats: bool,
) -> None:
    make, failure = WIDE_COLUMNS[column]
    email_id = add_email(**{column: make(repeats=repeats)})
    (claimed,) = outgoing.claim([email_id])
    # All that came of the row, in whatever column of the answer: the driver holds it at once.
    assert sum(len(value) for value in claimed if isinstance(value, str)) < HELD_OCTETS
    provider = SesProvider()
    new_deliverer(provider).deliver(email_of(claimed))
    provider.close()
    status, code = query("SELECT status, provider_last_error_code FROM emails")[0]
    assert (status, code) == (("failed", failure) if failure else ("sent", None))
    assert len(ses.taken()) == (not failure)


#: JSON that Postgres takes and a reader in Python may not: too deep, no float, more digits than Python reads.
ODD = ("[" * 3000 + "]" * 3000, "1e400", "9" * 5000, '"\\u0001\\ud83d\\ude00"', "null", "[[1, {}], true]")


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd[:8])
@pytest.mark.parametrize("place", ["headers", "value of headers", "to", "cc", "attachments", "entry of attachments"])
def test_a_row_that_cannot_be_read_spoils_no_claim_of_others(
    add_email: Callable[..., str], outgoing: Outgoing, query: Query, place: str, odd: str
) -> None:
    column = place.rsplit(maxsplit=1)[-1]
    document = {
        "value of headers": f'{{"X-Odd": {odd}}}',
        "entry of attachments": f'[{{"filename": "a.txt", "content": "QQ==", "more": {odd}}}]',
    }.get(place, odd)
    bad, good = add_email(), add_email()
    query(f'UPDATE emails SET "{column}" = %s::jsonb WHERE id = %s', document, bad)
    found = {email.id: email for email in map(email_of, outgoing.claim([bad, good]))}
    assert found.keys() == {bad, good}
    assert found[good].to == ("to@x.example",)
    assert found[good].flaw is None
    # What can't be read is not left out in silence: the mail would leave without it.
    assert (found[bad].flaw is Flaw.UNREADABLE) == (not readable(document))


def readable(document: str) -> bool:
    """Whether Python reads it, by the standard library, which reads more than orjson."""
    try:
        json.loads(document)
    except (ValueError, RecursionError):
        return False
    return True


def test_what_is_said_of_attachments_is_bounded(
    add_email: Callable[..., str],
    outgoing: Outgoing,
    new_deliverer: Callable[..., Deliverer],
    ses: Ses,
    query: Query,
) -> None:
    """File names of 4,000 characters, by the thousand: each of them would be in memory several times."""
    email_id = add_email(attachments=[{"filename": "n" * 4000, "content": "QQ=="}] * 3000)
    provider = SesProvider()
    for row in outgoing.claim([email_id]):
        new_deliverer(provider).deliver(email_of(row))
    provider.close()
    assert query("SELECT status, provider_last_error_code FROM emails") == [("failed", "TooManyAttachments")]
    assert ses.taken() == []
