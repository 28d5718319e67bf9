"""Regular expressions that can be made to take for ever: none of ours, and none of flanker's that we call.

Every entry to them is given a hundred pathological inputs, long enough that a quadratic expression needs many seconds
of CPU time, and an exponential one the age of the universe. The bound is a second, for a few milliseconds' work.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from relay.core.address import BadAddress, normalise
from relay.mail import (
    Unusable,
    charset,
    encoded_word,
    filename,
    flanker_address,
    mailbox,
    parameters,
    parse,
    transfer_encoding,
)
from relay.smtp import sasl
from relay.smtp.path import parse_path
from relay.smtp.proxy_protocol import NotProxied
from relay.smtp.proxy_protocol import parse as parse_proxy_header

LENGTH = 40_000
UNITS = [
    *("a", "A", "0", ".", "a.", "-", "a-", "_", "@", "a@", "a@b", "a@b,", "a@b.", "~", "'", "[", "]", "/", "//", "%41"),
    *(" ", "\t", " \t", "a ", " a", "  a", '"', '""', '"a', "\\", "\\\\", '\\"', "(", ")", "()", "((", "(\\", "<", ">"),
    *(
        "<>",
        "<a",
        "<a@b>",
        "=",
        "==",
        "=?",
        "?=",
        "=?=",
        "=?a?q?",
        "=?a?q?a?=",
        "=?a?q?a?= ",
        "=?utf-8?b?YQ==?=",
        "=\r\n",
    ),
    *(
        "= ",
        "=4",
        ";",
        "; ",
        ";a=",
        "; a=b",
        ';a="',
        ";a*0*=",
        ",",
        ", ",
        ":",
        "a:",
        ":;",
        "g:a@b;",
        "\r",
        "\n",
        "\r\n",
    ),
    *(
        "\r\n ",
        "\n\n",
        "\n ",
        "a\n",
        "a:\n",
        "a: b\n",
        "a\n a",
        "\n--",
        "--",
        "--b",
        "\n--b",
        "\n--b--",
        "--b\n",
        "-\n",
    ),
    *(
        "begin 644 a\n",
        "begin",
        "\xe4",
        "\xe4 ",
        "a\xe4",
        "\xa0",
        "\x85",
        "\0",
        "\x7f",
        "\x1b$B",
        "\x1b(B",
        "+AA-",
        ">",
    ),
]
#: What makes an expression that got so far fail after all.
ENDS = ["!", "", "\0@"]


def attacks() -> list[str]:
    return [unit * (LENGTH // len(unit)) + end for unit, end in zip(UNITS, itertools.cycle(ENDS), strict=False)]


def field(name: str) -> Callable[[str], Any]:
    """A message with the attack as a field's value."""

    def read(text: str) -> None:
        head = f"From: a@b.example\r\n{name}: {text}".encode("latin-1")
        parse(head + b"\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n")

    return read


def body(fields: str) -> Callable[[str], Any]:
    """A message with the attack as its body."""
    return lambda text: parse(f"From: a@b.example\r\n{fields}\r\n\r\n{text}".encode("latin-1"))


TARGETS: dict[str, Callable[[str], Any]] = {
    "address list": mailbox.parse,
    "address list, tolerant": lambda text: mailbox.parse(text, shortcuts=False),
    "address list in angles": lambda text: mailbox.parse(f"x <{text}> y"),
    "address list in quotes": lambda text: mailbox.parse(f'"{text}" <a@b.example>'),
    "lookalikes": mailbox.lookalikes,
    "display name": lambda text: mailbox.with_name(text, "a@b.example"),
    "flanker's address grammar": flanker_address.parse,
    "flanker's address grammar, as long as it gets": lambda text: flanker_address.parse(text[:2000]),
    "encoded words": encoded_word.decode,
    "encoded words to be": encoded_word.encode,
    "parameters": lambda text: parameters.parse("text/plain; " + text),
    "parameters in quotes": lambda text: parameters.parse(f'text/plain; name="{text}'),
    "file name": filename.clean,
    "file name of a message": filename.for_message,
    "transfer encoding": transfer_encoding.name,
    "charset": lambda text: charset.decode(b"\xe4", text),
    "base64": lambda text: transfer_encoding.decode(text.encode("latin-1"), "base64"),
    "quoted-printable": lambda text: transfer_encoding.decode(text.encode("latin-1"), "quoted-printable"),
    "uuencode": lambda text: transfer_encoding.decode(text.encode("latin-1"), "uuencode"),
    "normal form of a local part": lambda text: normalise(text, "b.example"),
    "normal form of a domain": lambda text: normalise("a", text),
    "SMTP path": parse_path,
    "SMTP path in quotes": lambda text: parse_path(f'<"{text}"@b.example>'),
    "SMTP parameters": lambda text: parse_path("<a@b.example> " + text),
    "SASL": lambda text: sasl.Plain().respond(text.encode("latin-1")),
    "SASL, encoded": lambda text: sasl.Plain().respond(base64.b64encode(text.encode("latin-1"))),
    "header of a proxy": lambda text: parse_proxy_header(b"PROXY TCP4 " + text.encode("latin-1") + b"\r\n"),
    **{
        f"field {name}": field(name)
        for name in ("From", "To", "Subject", "Message-ID", "References", "X-Own", "X-OpenSend-Tag", "Idempotency-Key")
    },
    "field Content-Type": field("Content-Type"),
    "boundary": field("Content-Type: multipart/mixed; boundary=b\r\nX"),
    "boundary in quotes": field('Content-Type: multipart/mixed; boundary="'),
    "field Content-Disposition": field("Content-Disposition: attachment; filename"),
    "field Content-Transfer-Encoding": field("Content-Transfer-Encoding"),
    "field Content-ID": field("Content-Type: image/png\r\nContent-ID"),
    "header block": lambda text: parse(text.encode("latin-1")),
    "header block without an end": lambda text: parse(b"From: a@b.example\r\n" + text.encode("latin-1")),
    "text": body("Content-Type: text/plain"),
    "flowed text": body("Content-Type: text/plain; format=flowed; delsp=yes"),
    "parts": body("Content-Type: multipart/mixed; boundary=b"),
    "parts of no boundary": body("Content-Type: multipart/mixed"),
    "quoted-printable text": body("Content-Transfer-Encoding: quoted-printable"),
    "uuencoded attachment": body("Content-Type: image/png\r\nContent-Transfer-Encoding: x-uuencode"),
    "ISO-2022-JP": body("Content-Type: text/plain; charset=iso-2022-jp"),
    "attached message": body("Content-Type: message/rfc822"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_takes_long(name: str) -> None:
    read = TARGETS[name]
    for text in attacks():
        began = time.process_time()
        with contextlib.suppress(BadAddress, NotProxied, Unusable):
            read(text)
        took = time.process_time() - began
        assert took < 1, f"{took:.1f} s for {text[:24]!r}… {text[-3:]!r}"
