"""Composing takes time in proportion to what a row holds, whatever stands in it: REST stores what its users give it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Final

import pytest

from relay.delivery import encoding
from relay.delivery.compose import Unsendable
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from tests.security.long_messages import grows
from tests.support.composing import compose
from tests.unit.delivery.test_compose import row

#: What is repeated: what folding, encoding, quoting and decoding look for, alone and with something between.
UNITS: Final = (
    *("a", " ", "a ", "é", "é ", "漢 a", "\n", "\r\n", ".\n", "From \n", '"', "\\", '"a" ', "\\a", "<", ">", "a<", "@"),
    *("=", "A=", "AA=", "AAAA=", "=A", "==A", "-", "!", "=?", "?=", "=?utf-8?Q?a?=", "%", "&amp;", "''", ";", "a;"),
    *("charset=a;", "cid:", "cid:a ", "name=", 'name="', "METHOD:A\n", "=20", "a.", ",", "(", ":"),
)


def attached(**values: str) -> OutgoingEmail:
    stored = {"filename": "a", "content": "QUFBQQ==", "content_type": "text/plain", "content_id": "a", **values}
    attachment = OutgoingAttachment(
        filename=stored["filename"],
        content=stored["content"],
        path=None,
        content_type=stored["content_type"],
        content_id=stored["content_id"],
    )
    return row(html='<img src="cid:a">', attachments=(attachment,))


PLACES: Final[dict[str, Callable[[str], OutgoingEmail]]] = {
    "subject": lambda text: row(subject=text),
    "header": lambda text: row(headers={"X-A": text}),
    "sender header": lambda text: row(headers={"Sender": f"{text} <ann@example.com>"}),
    "from": lambda text: row(sender=f"{text} <ann@example.com>"),
    "to": lambda text: row(to=(f"{text} <bob@example.com>",)),
    "address": lambda text: row(to=(f"{text}@example.com",)),
    "reply-to": lambda text: row(reply_to=(f"{text} <bob@example.com>",)),
    "text": lambda text: row(text=text),
    "html": lambda text: row(html=text, attachments=attached().attachments),
    "filename": lambda text: attached(filename=text),
    "content": lambda text: attached(content=text),
    "content type": lambda text: attached(content_type=f"text/plain; {text}"),
    "content id": lambda text: attached(content_id=text),
    "calendar": lambda text: attached(content_type=f"text/calendar; {text}", content=text),
    "message": lambda text: attached(content_type="message/rfc822", content=text),
}


@pytest.mark.parametrize("place", PLACES)
def test_time_is_linear(place: str) -> None:
    for unit in UNITS:

        def work(size: int, unit: str = unit) -> float:
            email = PLACES[place](unit * (size // len(unit)))
            began = time.process_time()
            with contextlib.suppress(Unsendable):
                compose(email)
            return time.process_time() - began

        found = grows(work, 200_000, 0.3)
        assert found is None, (place, unit, found)


@pytest.mark.parametrize("unit", ["a", "a b", " ", '\\"'])
@pytest.mark.parametrize(
    "fold",
    [
        lambda text: encoding.field("X-A", text),
        lambda text: encoding.mailbox_field("To", [text]),
        lambda text: encoding.parameters_field("Content-Type", "text/plain", [f'name="{text}"']),
    ],
)
def test_folding_is_linear(fold: Callable[[str], bytes], unit: str) -> None:
    """What is copied again for each line costs little: it shows in megabytes."""

    def work(size: int) -> float:
        text = unit * (size // len(unit))
        began = time.process_time()
        fold(text)
        return time.process_time() - began

    assert grows(work, 5_000_000, 0.25) is None
