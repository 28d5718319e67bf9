"""The messages that are sent: made here, the same ones in every run, except for what real ones don't share either."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from email import policy
from email.message import EmailMessage
from functools import cache
from types import MappingProxyType
from typing import Final

#: Octets on the wire, about.
SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "1.2 KB": 1_200,
        "25 KB": 25_000,
        "230 KB": 230_000,
        "10 MB": 10_000_000,
        "39 MB": 39_000_000,
    }
)

_VOCABULARY: Final = (
    "order invoice delivery thank you for your purchase we have received payment and will send the parcel within two "
    "days please keep this number account customer service reply question address change street city total tax item "
    "quantity price discount tomorrow morning afternoon the a of to in is with at from by on as it our are be"
)
#: The two fields that differ from copy to copy.
_HEAD: Final = b"To: %s\r\nMessage-ID: <%s@shop.example>\r\n"
_UMLAUTS: Final = ("Grüße", "Straße", "für", "über", "Größe", "schön")


@dataclass(frozen=True, slots=True)
class Template:
    """A message to be filled in for each transaction: most of it is shared by all copies, however large."""

    _head: bytes
    _rest: bytes

    def fill(self, recipient: str, message_id: str) -> tuple[bytes, bytes]:
        """What follows 354, end of data included, in two pieces. `message_id`: the part before the @."""
        return self._head % (recipient.encode("ascii"), message_id.encode("ascii")), self._rest

    def raw(self, recipient: str, message_id: str) -> bytes:
        """The message itself, before dots are stuffed, without the end of data."""
        head, rest = self.fill(recipient, message_id)
        return (head + rest[: -len(b".\r\n")]).replace(b"\r\n..", b"\r\n.")


@cache
def template(size: str) -> Template:
    """The message of one of `SIZES`: text and HTML, from 230 KB on with an attachment."""
    wanted = SIZES[size]
    chance = random.Random(size)  # noqa: S311 - the same message in every run
    lines: list[str] = []
    attachment = b""
    if wanted < 200_000:
        while len(raw := _build(lines, attachment)) < wanted - 100:
            lines.append(_line(chance, umlauts=wanted > 2_000))
    else:
        lines = [_line(chance, umlauts=True) for _ in range(30)]
        # 57 octets make a line of 76 and its end.
        attachment = chance.randbytes((wanted - len(_build(lines, attachment))) * 57 // 78)
        raw = _build(lines, attachment)
    return Template(_HEAD, raw.replace(b"\r\n.", b"\r\n..") + b".\r\n")


def _build(lines: list[str], attachment: bytes) -> bytes:
    message = EmailMessage(policy=policy.SMTP)
    message["Subject"] = "Your order has been sent"
    message["Date"] = "Mon, 02 Jun 2025 09:30:00 +0200"
    message["From"] = '"Example Shop" <orders@shop.example>'
    message["Reply-To"] = "service@shop.example"
    message["X-Mailer"] = "Shop 4.2"
    encoding = "7bit" if all(line.isascii() for line in lines) else "quoted-printable"
    message.set_content("\n".join(lines) + "\n", cte=encoding)
    message.add_alternative(_html(lines), subtype="html", cte=encoding)
    _fix_boundary(message, "alternative")
    if attachment:
        message.add_attachment(attachment, maintype="application", subtype="pdf", filename="invoice.pdf")
        _fix_boundary(message, "mixed")
    return message.as_bytes()


def _fix_boundary(message: EmailMessage, name: str) -> None:
    """The library would draw lots."""
    message.set_boundary(f"=-{name}-5f0e63a1b8c94d27")


def _line(chance: random.Random, *, umlauts: bool) -> str:
    words = chance.choices(_VOCABULARY.split(), k=11)
    if umlauts and chance.random() < 0.2:
        words[chance.randrange(11)] = chance.choice(_UMLAUTS)
    return " ".join(words)[:72]


def _html(lines: list[str]) -> str:
    paragraphs = "".join(f'<p class="text">{line}</p>\n' for line in lines)
    return (
        '<!DOCTYPE html>\n<html><head><meta charset="utf-8"><title>Order</title></head>\n'
        f'<body>\n{paragraphs}<a href="https://shop.example/orders/1">Your order</a>\n</body></html>\n'
    )
