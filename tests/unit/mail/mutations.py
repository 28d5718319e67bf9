"""Random damage to the corpus: whatever a message was turned into, it is read in bounded time and memory, and fits its
row.

    python -m tests.unit.mail.mutations --runs 100000

is the full run, which inserts every accepted message into a real Postgres; the suite makes a short one. The same seed
makes the same messages.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import random
import re
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg2
from psycopg2.extras import execute_values

from relay.mail import Limits, Message, Unusable
from relay.mail.reader import parse
from scripts.database import apply_schema, create_database
from scripts.services import Postgres
from tests.support.mail_corpus import messages

#: Bounds of one message: seconds of CPU, and octets of memory for each of its octets beside a fixed amount for tables
#: and caches.
MAX_SECONDS = 1.0
MAX_MEMORY_RATIO = 10
_MEMORY_FLOOR = 4_000_000
#: Larger messages of the corpus would fill the time with copies of themselves.
_LARGEST = 64_000

_TOKENS = (
    b'\r\n \n \r\n\r\n -- --cut --cut-- " ; = < > ( ) , : @ \\ \x00 \xff \xed\xa0\x80 \xe4 =\r\n == =?utf-8?q? ?= '
    b"=?iso-2022-jp?b? boundary= boundary*0*= charset=utf-16 charset=iso-2022-jp charset=gb18030 filename*=utf-7'' "
    b"base64 quoted-printable x-uuencode begin\t644\tx \x1b$B \x1b(B multipart/digest multipart/alternative "
    b"message/rfc822 format=flowed; \xef\xbb\xbf %00 =00 =0D=0A ."
).split(b" ")
_LINES = (
    b"Content-Type: multipart/mixed; boundary=cut\r\n",
    b"Content-Type: text/html\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
    b"Content-Transfer-Encoding: quoted-printable\r\n",
    b"From: x <x@other.example>\r\n",
    b"To: =?utf-8?q?a=40b.example?= <c@d.example>, \xc3\xa4@\xc3\xa4.example\r\n",
    b"X-Own: \xe4 =?utf-8?q?=0a?=\r\n",
    b"--cut\r\n",
    b"--cut--\r\n",
    b"\r\n",
    b" \r\n",
)
_PRINTABLE = re.compile(r"[ -~]+\Z")
_NAME = re.compile(r"[!-9;-~]{1,126}\Z")


def mutated(seed: int, count: int) -> Iterator[bytes]:
    """`count` messages of the corpus, each damaged in one to six places."""
    chance = random.Random(seed)
    corpus = [raw for raw in (path.read_bytes() for path in messages()) if len(raw) <= _LARGEST]
    for _ in range(count):
        raw = bytearray(chance.choice(corpus))
        for _ in range(chance.randint(1, 6)):
            _damage(raw, chance, corpus)
        yield bytes(raw)


def _damage(raw: bytearray, chance: random.Random, corpus: Sequence[bytes]) -> None:
    start = chance.randint(0, len(raw))
    end = min(len(raw), start + chance.choice((1, 2, 5, 20, 100, 500)))
    kind = chance.randrange(10)
    if kind == 0 and raw:
        raw[start % len(raw)] = chance.randrange(256)
    elif kind == 1:
        del raw[start:end]
    elif kind == 2:
        raw[start:start] = raw[start:end] * chance.choice((1, 2, 30))
    elif kind == 3:
        raw[start:start] = chance.choice(_TOKENS) * chance.choice((1, 1, 1, 2, 200))
    elif kind == 4:
        at = raw.find(b"\n", start) + 1
        raw[at:at] = chance.choice(_LINES)
    elif kind == 5:
        other = chance.choice(corpus)
        at = chance.randint(0, len(other))
        raw[start:start] = other[at : at + 400]
    elif kind == 6:
        del raw[start:]
    elif kind == 7:
        raw[:] = raw.replace(b"\r\n", chance.choice((b"\n", b"\r", b"\r\r\n", b"\r\n \r\n")))
    elif kind == 8:
        raw[start:end] = chance.randbytes(end - start)
    else:
        lines = raw.split(b"\n")
        chance.shuffle(lines)
        raw[:] = b"\n".join(lines)


def check(raw: bytes, *, memory: bool) -> Message | None:
    """Reads one message and holds the result to its promises; None where it was refused. Raises AssertionError."""
    if memory:
        tracemalloc.start()
    detail = ""
    started = time.process_time()
    try:
        message: Message | None = parse(raw, Limits())
    except Unusable as unusable:
        message, detail = None, unusable.detail
    seconds = time.process_time() - started
    if memory:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= MAX_MEMORY_RATIO * len(raw) + _MEMORY_FLOOR, f"{peak} octets for a message of {len(raw)}"
    else:
        assert seconds <= MAX_SECONDS, f"{seconds:.2f} s"
    assert detail.isascii()
    assert len(detail) <= 200
    if message is not None:
        _fits_its_row(message)
    return message


def check_both_ways(raw: bytes) -> None:
    """The shortcuts must not change what becomes of a message, whatever was done to it. Raises AssertionError."""
    results: list[Message | str] = []
    for shortcuts in (True, False):
        try:
            results.append(dataclasses.replace(parse(raw, Limits(), shortcuts=shortcuts), parser=""))
        except Unusable as unusable:
            results.append(unusable.fault.value)
    assert results[0] == results[1]


def _fits_its_row(message: Message) -> None:
    for text in (message.subject, message.text, message.html, *(each.filename for each in message.attachments)):
        text.encode("utf-8")
        assert "\0" not in text
    assert not set("\r\n") & set(message.subject)
    assert message.text or message.html
    assert message.sender.isascii()
    assert len(message.sender) <= 512
    for address in (*message.from_addresses, *message.to, *message.cc, *message.bcc, *message.reply_to):
        assert address.isascii()
        assert address.isprintable()
        assert 3 <= len(address) <= 512
    assert len(message.headers) <= 14
    for name, value in message.headers.items():
        assert _NAME.match(name)
        assert _PRINTABLE.match(value)
        assert len(name) + len(value) <= 996
    for attachment in message.attachments:
        base64.b64decode(attachment.content, validate=True)
        assert 1 <= len(attachment.filename) <= 255
        assert attachment.filename.isprintable() or not re.search(r"[\x00-\x1f\x7f]", attachment.filename)
        assert attachment.content_type is None or _PRINTABLE.match(attachment.content_type)
        attachment.content_id is None or attachment.content_id.encode("utf-8")


def insert(url: str, accepted: Sequence[Message]) -> None:
    """Inserts messages into the emails table of a database that has the contract's tables, and empties it again."""
    rows = [
        (
            message.sender,
            *(json.dumps(each) for each in (message.to, message.cc, message.bcc, message.reply_to)),
            message.subject,
            message.html,
            message.text,
            json.dumps(dict(message.headers), ensure_ascii=False),
            json.dumps([dataclasses.asdict(each) for each in message.attachments], ensure_ascii=False),
            json.dumps(message.tags),
            message.idempotency_key,
        )
        for message in accepted
    ]
    statement = """insert into emails (id, "from", "to", cc, bcc, reply_to, subject, html, text, headers, attachments,
        tags, idempotency_key, status, created_at) values %s"""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        template = "(gen_random_uuid(), %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'queued', now())"
        execute_values(cursor, statement, rows, template, page_size=len(rows) or 1)
        cursor.execute("delete from emails")
        assert cursor.rowcount == len(rows)
    connection.close()


def main() -> int:
    """The full run: 0 when every message kept its promises, 1 after the first that didn't, which is written to a
    file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    counted: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as directory, Postgres(Path(directory), durable=False) as server:
        url = create_database(server.url(), "mutations")
        apply_schema(url)
        batch: list[Message] = []
        for number, raw in enumerate(mutated(arguments.seed, arguments.runs)):
            try:
                started = time.process_time()
                message = check(raw, memory=number % 20 == 0)
                slowest = max(slowest, time.process_time() - started if number % 20 else 0.0)
                if number % 10 == 0:
                    check_both_ways(raw)
            except BaseException:
                failed = Path(tempfile.gettempdir()) / f"mutation-{arguments.seed}-{number}.eml"
                failed.write_bytes(raw)
                print(f"message {number}: see {failed}", file=sys.stderr)
                raise
            counted[message.parser if message else "refused"] += 1
            if message:
                batch.append(message)
            if len(batch) == 500:
                insert(url, batch)
                batch.clear()
            if number % 10_000 == 9_999:
                print(f"{number + 1} messages, slowest {slowest * 1000:.0f} ms, {dict(counted)}", flush=True)
        insert(url, batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
