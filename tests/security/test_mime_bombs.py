"""Messages that are made to cost more than they weigh: depth, number, size, and what is declared against what there is.

Each costs time in proportion to its length, and memory bounded by it. Times are CPU time, and an order of magnitude
above what is needed: what isn't linear takes a hundred times as long.
"""

from __future__ import annotations

import base64
import gzip
import smtplib
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from relay.mail import Limits, Message, Unusable, parse
from scripts.database import NewApiKey
from scripts.services import processes
from tests.support.relay_process import Relay

HEAD = b"From: ann@example.com\r\nTo: to@x.example\r\nMIME-Version: 1.0\r\n"
LIMITS = Limits()


def nested(depth: int, *, kind: bytes = b"multipart/mixed") -> bytes:
    """Containers in containers, all of them closed."""
    opened = [b"Content-Type: %s; boundary=b%d\r\n\r\n--b%d\r\n" % (kind, n, n) for n in range(depth)]
    closed = [b"--b%d--\r\n" % n for n in reversed(range(depth))]
    return HEAD + b"".join(opened) + b"Content-Type: text/plain\r\n\r\nx\r\n" + b"".join(closed)


def parts(count: int, part: bytes = b"\r\nx\r\n") -> bytes:
    return (
        HEAD + b"Content-Type: multipart/mixed; boundary=cut\r\n\r\n" + (b"--cut\r\n" + part) * count + b"--cut--\r\n"
    )


def one(fields: bytes, body: bytes = b"x") -> bytes:
    return HEAD + fields + b"\r\n\r\n" + body


MILLION = 1_000_000
BOMBS: dict[str, Callable[[], bytes]] = {
    "depth of ten thousand": lambda: nested(10_000),
    "depth of ten thousand, one boundary": lambda: (
        HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" * 10_000
    ),
    "depth of ten thousand, alternatives": lambda: nested(10_000, kind=b"multipart/alternative"),
    "depth of ten thousand, prefixes of one boundary": lambda: (
        HEAD
        + b"".join(
            b"Content-Type: multipart/x; boundary=%s\r\n\r\n--%s\r\n" % (b"b" * n, b"b" * n) for n in range(1, 1000)
        )
    ),
    "message in message in message": lambda: HEAD + b"Content-Type: message/rfc822\r\n\r\n" * 10_000,
    "a hundred thousand parts": lambda: parts(100_000),
    "a hundred thousand parts without an end": lambda: parts(100_000)[:-9],
    "a hundred thousand empty parts": lambda: parts(100_000, b""),
    "a hundred thousand named attachments": lambda: parts(
        100_000, b"Content-Disposition: attachment; filename=a.txt\r\n\r\nx\r\n"
    ),
    "a hundred thousand boundaries that aren't": lambda: one(
        b"Content-Type: multipart/mixed; boundary=cut", b"--cutx\r\n" * 100_000
    ),
    "a header of ten megabytes": lambda: one(b"X-Long: " + b"x" * 10 * MILLION),
    "a folded header of three megabytes": lambda: one(b"X-Long: " + b"x\r\n " * (3 * MILLION // 4)),
    "a header name of three megabytes": lambda: one(b"x" * 3 * MILLION + b": x"),
    "nothing but a header that never ends": lambda: HEAD + b"Subject: " + b"=?utf-8?q?" * MILLION,
    "a hundred thousand headers": lambda: HEAD + b"".join(b"X-%d: y\r\n" % n for n in range(100_000)) + b"\r\nx",
    "a million headers of one name": lambda: HEAD + b"X: y\r\n" * MILLION + b"\r\nx",
    "a hundred thousand From fields": lambda: b"From: ann@example.com\r\n" * 100_000 + b"\r\nx",
    "a million parameters": lambda: one(b"Content-Type: text/plain" + b"; a=b" * MILLION),
    "a hundred thousand different parameters": lambda: one(
        b"Content-Type: text/plain" + b"".join(b"; a%d=b" % n for n in range(100_000))
    ),
    "a hundred thousand pieces of one parameter": lambda: one(
        b"Content-Disposition: attachment" + b"".join(b"; filename*%d=b" % n for n in range(100_000))
    ),
    "a million times the same piece": lambda: one(b"Content-Disposition: attachment" + b"; filename*0*=%41" * MILLION),
    "a boundary of a megabyte": lambda: one(b'Content-Type: multipart/mixed; boundary="%s"' % (b"b" * MILLION)),
    "a charset of a megabyte": lambda: one(b'Content-Type: text/plain; charset="%s"' % (b"c" * MILLION)),
    "a file name of three megabytes": lambda: one(
        b'Content-Disposition: attachment; filename="%s"' % (b"/" * 3 * MILLION)
    ),
    "half a million addresses": lambda: HEAD + b"Cc: " + b"a@x.example, " * 500_000 + b"\r\n\r\nx",
    "a hundred thousand different addresses": lambda: (
        HEAD + b"Cc: " + b", ".join(b"a%d@x%d.example" % (n, n) for n in range(100_000)) + b"\r\n\r\nx"
    ),
    "twenty thousand international domains": lambda: (
        HEAD + b"Cc: " + b", ".join(b"a@\xc3\xbc%d.example" % n for n in range(20_000)) + b"\r\n\r\nx"
    ),
    "a domain of a megabyte": lambda: HEAD + b"Cc: a@" + b"\xc3\xbc." * 400_000 + b"\r\n\r\nx",
    "a domain label of a megabyte": lambda: HEAD + b"Cc: a@" + b"\xc3\xbc" * 400_000 + b".example\r\n\r\nx",
    "a group of a million": lambda: HEAD + b"Cc: g:" * 300_000 + b"a@x.example;\r\n\r\nx",
    "comments of a million levels": lambda: HEAD + b"Cc: " + b"(" * MILLION + b")" * MILLION + b" a@x.example\r\n\r\nx",
    "references of three megabytes": lambda: one(b"References: " + b"<a@b> " * (3 * MILLION // 6)),
    "white space of three megabytes": lambda: one(b"Subject: " + b" " * 3 * MILLION + b"x"),
    "base64 that is white space": lambda: one(
        b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64", b"\r\n" * 5 * MILLION
    ),
    "quoted-printable of soft line ends": lambda: one(
        b"Content-Transfer-Encoding: quoted-printable", b"=\r\n" * 3 * MILLION
    ),
    "quoted-printable of blanks": lambda: one(b"Content-Transfer-Encoding: quoted-printable", b" \t" * 5 * MILLION),
    "flowed text": lambda: one(b"Content-Type: text/plain; format=flowed; delsp=yes", b"> \r\n" * MILLION),
    "flowed quotes": lambda: one(b"Content-Type: text/plain; format=flowed", b">" * 3 * MILLION),
    "uuencode without an end": lambda: one(
        b"Content-Type: image/png\r\nContent-Transfer-Encoding: x-uuencode", b"begin 644 a\r\n" * 500_000
    ),
    "utf-7": lambda: one(b"Content-Type: text/plain; charset=utf-7", b"+AA" * MILLION),
    "iso-2022-jp": lambda: one(b"Content-Type: text/plain; charset=iso-2022-jp", b"\x1b$B\x1b(B" * MILLION),
    "line ends alone": lambda: HEAD + b"\r\n" + b"\n" * 5 * MILLION,
    "no line end at all": lambda: b"x" * 3 * MILLION,
    "NUL": lambda: HEAD + b"\r\n" + b"\0" * 3 * MILLION,
}


@pytest.mark.parametrize("name", BOMBS)
def test_time_in_proportion_to_length(name: str) -> None:
    raw = BOMBS[name]()
    began = time.process_time()
    try:
        message: Message | None = parse(raw, LIMITS)
    except Unusable:
        message = None
    took = time.process_time() - began
    # A megabyte takes a fraction of this; what isn't linear takes minutes.
    assert took < 2 + len(raw) / MILLION, f"{took:.1f} s for {len(raw)} octets"
    if message is not None:
        assert len(message.headers) <= 14
        assert len(message.attachments) <= LIMITS.max_parts
        assert all(len(each.filename) <= 255 for each in message.attachments)


@pytest.mark.parametrize(
    "name",
    [
        "a hundred thousand parts",
        "depth of ten thousand",
        "a million parameters",
        "a million headers of one name",
        "half a million addresses",
        "quoted-printable of soft line ends",
        "a group of a million",
    ],
)
def test_memory_in_proportion_to_length(name: str) -> None:
    raw = BOMBS[name]()[: 2 * MILLION]
    tracemalloc.start()
    try:
        parse(raw, LIMITS)
    except Unusable:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 * len(raw) + 2 * MILLION, f"{peak / len(raw):.0f} octets for each octet"


def test_what_a_part_declares_of_its_size_is_not_believed() -> None:
    content = base64.encodebytes(b"x" * 300_000).replace(b"\n", b"\r\n")
    fields = (
        b"Content-Type: application/zip; size=1\r\nContent-Length: 1\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-Disposition: attachment; filename=a.zip; size=99999999999999999999"
    )
    (attachment,) = parse(one(fields, content)).attachments
    assert base64.b64decode(attachment.content) == b"x" * 300_000
    with pytest.raises(Unusable):
        parse(one(fields, content), Limits(max_attachment_octets=399_999))


def test_nothing_is_unpacked() -> None:
    """A gigabyte in a megabyte stays one."""
    bomb = gzip.compress(b"\0" * 50 * MILLION, 9)
    encoded = base64.encodebytes(bomb).replace(b"\n", b"\r\n")
    for kind in (b"application/gzip", b"message/rfc822", b"multipart/mixed", b"text/plain; charset=zlib"):
        fields = b"Content-Type: %s\r\nContent-Encoding: gzip\r\nContent-Transfer-Encoding: base64" % kind
        message = parse(one(fields, encoded))
        assert len(message.text) + sum(len(each.content) for each in message.attachments) < 3 * len(encoded)
    # Python has codecs that unpack; none of them is a charset.
    for name in (b"zlib", b"zip", b"bz2", b"hex", b"base64", b"rot13", b"unicode_escape", b"idna", b"undefined"):
        assert len(parse(one(b"Content-Type: text/plain; charset=" + name, bomb)).text) <= 2 * len(bomb)


def test_encodings_of_encodings_are_taken_off_once() -> None:
    """Encoded words in encoded words, Base64 in Base64: one layer is what the standard knows."""
    word = b"x"
    for _ in range(12):
        word = b"=?utf-8?b?" + base64.b64encode(word) + b"?="
    subject = parse(one(b"Subject: " + word)).subject
    assert subject.startswith("=?utf-8?b?")


@pytest.mark.parametrize("name", ["depth of ten thousand", "a hundred thousand parts", "a million parameters"])
def test_end_to_end(name: str, relay: Relay, api_key: NewApiKey, query: Callable[..., list[dict[str, Any]]]) -> None:
    """A bomb is answered, the next client is served, and the memory is given back."""
    bomb = BOMBS[name]()
    with relay.client(api_key.token) as client:
        client.sock.settimeout(60)
        for _ in range(2):
            if name == "a million parameters":  # more octets than are read of a header
                with pytest.raises(smtplib.SMTPDataError, match="552"):
                    client.sendmail("ann@example.com", ["to@x.example"], bomb)
            else:
                client.sendmail("ann@example.com", ["to@x.example"], bomb)
        client.sendmail("ann@example.com", ["to@x.example"], one(b"Subject: next"))
    (row,) = query("SELECT count(*) AS count FROM emails")
    assert row["count"] == (1 if name == "a million parameters" else 3)
    assert sum(process.memory_info().rss for process in processes.family(relay.pid)) < 400 * MILLION
