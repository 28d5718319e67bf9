"""Rows that are too large to be held: what leaves is what would leave from memory, and trouble loses nothing."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from relay.delivery import large_mails
from relay.delivery.large_mails import Busy, LargeMails
from relay.delivery.row import email_of
from relay.delivery.tracking import Tracking
from relay.mail import parse
from relay.postgres import row_contents
from relay.postgres.database import Database
from relay.postgres.outgoing import HELD_OCTETS, Outgoing
from relay.postgres.row_contents import RowContents
from scripts.services import Ses
from tests.support.composing import compose
from tests.unit.delivery.test_compose import row

Query = Callable[..., list[tuple[Any, ...]]]
SOURCE = random.Random(15)


def encoded(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def noise(size: int) -> bytes:
    return SOURCE.randbytes(size)


#: Rows of every shape that goes by way of a file, as columns.
LARGE: dict[str, dict[str, Any]] = {
    "an attachment": {"attachments": [{"filename": "a.pdf", "content": encoded(noise(1_000_001))}]},
    "attachments of all sizes": {
        "attachments": [{"filename": f"{n}.pdf", "content": encoded(noise(n))} for n in (0, 1, 2, 3, 57, 300_000, 58)]
    },
    "what is small as it is stored": {"attachments": [{"filename": "zeros", "content": "A" * 1_000_000}]},
    "without padding, with line ends": {
        "attachments": [{"filename": "a", "content": "\n".join(["QUJD"] * 100_000) + "QQ"}]
    },
    "many attachments": {"attachments": [{"filename": f"{n}", "content": encoded(noise(5_000))} for n in range(100)]},
    "not all are attachments": {
        "attachments": [7, "x", None, {"filename": 1}, {"filename": "a", "content": encoded(noise(400_000))}, {}]
    },
    "a text": {"text": "A line.\r\nAnother\rone\n" * 40_000},
    "a text with emoji": {"text": "\U0001f600 漢字 é\n" * 40_000},
    "one line": {"text": "x" * 700_000, "html": "<p>" + "é" * 400_000},
    "lines that begin with dots": {"text": ".\n..\nFrom x\n" * 40_000 + "é"},
    "html that names an image": {
        "html": "<p>x</p>\n" * 40_000 + '<img src="cid:logo">',
        "attachments": [{"filename": "l.png", "content": encoded(noise(300_000)), "content_id": "<logo>"}],
    },
    "an invitation and a message": {
        "attachments": [
            {
                "filename": "i.ics",
                "content": encoded(b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\n" + b"X:1\r\n" * 60_000),
                "content_type": "text/calendar; method=REQUEST",
            },
            {
                "filename": "m.eml",
                "content": encoded(b"Subject: x\r\n\r\n" + b"Hi\r\n" * 80_000),
                "content_type": "message/rfc822",
            },
        ]
    },
}


@pytest.mark.parametrize("columns", LARGE.values(), ids=LARGE)
def test_what_leaves_by_way_of_a_file_is_what_would_leave_from_memory(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    outgoing: Outgoing,
    ses: Ses,
    query: Query,
    columns: dict[str, Any],
) -> None:
    email_id = add_email(**{"to": ["Ann <to@x.example>"], "text": "", **columns})
    ((created,),) = query("SELECT created_at FROM emails")
    deliver(email_id)
    (taken,) = ses.taken()
    held = {"attachments": None, "html": "", "text": "", **columns}
    attachments = json.dumps(held["attachments"] or [])
    header = json.dumps([["Ann <to@x.example>"], [], [], [], "Hello", {}])
    texts = held["html"], held["text"]
    small = email_of((email_id, "user", "Ann <ann@example.com>", header, *texts, attachments, 0, created, 0, 0, False))
    assert taken.octets == compose(small).octets


def test_links_of_a_large_mail_are_tracked(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    query(
        "INSERT INTO domains (id, name, status, track_clicks, track_opens, user_id)"
        " VALUES (gen_random_uuid(), 'example.com', 'verified', true, true, 'user')"
    )
    html = '<p><a href="https://x.example/?a=1&amp;b=é">漢字</a></p>\n' * 1000 + "<p>more</p>\n" * 20_000 + "</body>"
    deliver(add_email(html=html), tracking=Tracking("a secret of sixteen", "https://app.example"))
    (taken,) = ses.taken()
    read = parse(taken.octets).html
    assert read.count("https://app.example/api/track/click/") == 1000
    assert read.count("/api/track/open/") == 1
    assert "x.example" not in read


def test_a_mail_that_tracking_would_make_too_large_leaves_without_it(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, query: Query
) -> None:
    query(
        "INSERT INTO domains (id, name, status, track_clicks, track_opens, user_id)"
        " VALUES (gen_random_uuid(), 'example.com', 'verified', true, true, 'user')"
    )
    # What tracked links add to them is far more than 40 MB.
    html = "<a href=http://x.example></a>\n" * 130_000
    deliver(add_email(html=html), tracking=Tracking("a secret of sixteen", "https://app.example"))
    (taken,) = ses.taken()
    assert parse(taken.octets).html.rstrip() == html.rstrip()


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"attachments": [{"filename": "a", "content": "A" * 400_001}]}, "BadAttachment"),
        ({"attachments": [{"filename": "a", "content": "A" * 400_000}, {"filename": "b"}]}, "BadAttachment"),
        ({"attachments": [{"filename": "a.exe", "content": "A" * 400_000}]}, "RefusedExtension"),
        ({"attachments": [{"filename": "a", "content": "A" * 60_000_000}]}, "MessageTooLarge"),
        ({"attachments": [{"filename": "a", "content": ""}] * 100_001}, "TooManyAttachments"),
        ({"text": "x" * 42_000_000}, "MessageTooLarge"),
        ({"text": "é" * 400_000, "to": []}, "NoRecipients"),
    ],
)
def test_a_large_row_that_no_provider_takes_fails_with_a_cause(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    columns: dict[str, Any],
    code: str,
) -> None:
    deliver(add_email(**columns))
    assert ses.taken() == []
    assert query("SELECT status, provider_last_error_code FROM emails") == [("failed", code)]


def test_a_spool_without_room_puts_the_mail_back(
    add_email: Callable[..., str],
    deliver: Callable[..., None],
    ses: Ses,
    query: Query,
    pauses: list[float],
    tmp_path: Path,
) -> None:
    """No attempt, no event, no pause for others; and it leaves once there is room. /dev/full is a disk without any."""
    email_id = add_email(text="x" * 2 * HELD_OCTETS)
    original = large_mails.Spool.__init__

    def full(spool: Any, _directory: str | None) -> None:
        original(spool, str(tmp_path))
        spool._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115

    for broken in (full, lambda spool, _: original(spool, "/nowhere")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(large_mails.Spool, "__init__", broken)
            deliver(email_id)
            deliver(add_email(subject="small"))
        state = "SELECT status, provider_retry_count, provider_next_retry_at IS NOT NULL FROM emails WHERE id = %s"
        assert query(state, email_id) == [("queued", 0, True)]
        assert query("SELECT count(*) FROM email_events WHERE email_id = %s", email_id) == [(0,)]
        assert email_id not in {taken.email_id for taken in ses.taken()}
        query("UPDATE emails SET provider_next_retry_at = NULL")
    assert len(ses.taken()) == 2
    assert pauses == []
    deliver(email_id)
    assert query("SELECT status FROM emails WHERE id = %s", email_id) == [("sent",)]


def test_a_connection_that_is_lost_in_the_middle_begins_anew(
    add_email: Callable[..., str], database: Database, query: Query, tmp_path: Path
) -> None:
    email_id = add_email(text="x" * 2_000_000)
    begun = 0

    class Reader:
        octets = b""

        def begin(self) -> None:
            nonlocal begun
            begun += 1
            self.octets = b""

        def text(self, column: str, pieces: Iterator[bytes]) -> None:
            for piece in pieces:
                self.octets += piece
                if begun == 1:
                    query(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = 'opensend-relay' AND datname = current_database()"
                    )

        def contents(self, pieces: Iterator[tuple[int, bytes]]) -> None:
            assert list(pieces) == []

    reader = Reader()
    RowContents(database).read(email_id, reader)
    assert begun == 2
    assert reader.octets == b"x" * 2_000_000


def test_what_is_over_4_mb_waits_for_its_turn(
    add_email: Callable[..., str], database: Database, outgoing: Outgoing, tmp_path: Path
) -> None:
    """One at a time; two wait; the others are put back. Those below 4 MB do not wait."""
    mails = LargeMails(RowContents(database), str(tmp_path), fetches=1)
    text = "x" * (large_mails.ALONE_OCTETS + 1)
    large = [email_of(found) for found in outgoing.claim([add_email(text=text) for _ in range(4)])]
    (middle,) = [email_of(found) for found in outgoing.claim([add_email(text="x" * 2 * HELD_OCTETS)])]
    order: list[str] = []
    go_on = gevent.event.Event()

    def handle(name: str, email: Any) -> None:
        with mails.opened(email) as (bodies, _):
            assert bodies.text.size == len(text)
            order.append(f"{name} in")
            go_on.wait()
            order.append(f"{name} out")

    running = [gevent.spawn(handle, str(number), email) for number, email in enumerate(large[:3])]
    while not order:
        gevent.sleep(0.01)
    gevent.sleep(0.1)
    with mails.opened(middle) as (bodies, _):
        assert bodies.text.size == 2 * HELD_OCTETS
    with pytest.raises(Busy), mails.opened(large[3]):
        pass
    go_on.set()
    gevent.joinall(running, raise_error=True)
    assert order == ["0 in", "0 out", "1 in", "1 out", "2 in", "2 out"]


def test_attachments_that_take_long_to_fetch_leave_places_for_other_mail(
    add_email: Callable[..., str],
    database: Database,
    outgoing: Outgoing,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one user half of what all have, and of all together no more than the process lets them."""
    mails = LargeMails(RowContents(database), str(tmp_path), fetches=4)
    attachments = [{"filename": "a", "path": "https://slow.example/a"}]
    go_on = gevent.event.Event()
    fetching: list[str] = []

    def slow(*_: object) -> None:
        fetching.append("one")
        go_on.wait()

    def handle(email: Any) -> str:
        try:
            with mails.opened(email):
                return "opened"
        except Busy:
            return "busy"

    monkeypatch.setattr(large_mails, "fetch", slow)
    monkeypatch.setattr(large_mails, "_FETCH_TURN_SECONDS", 0.05)
    users = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    rows = [
        email_of(found)
        for user in users
        for found in outgoing.claim([add_email(attachments=attachments, user_id=user)])
    ]
    (plain,) = [email_of(found) for found in outgoing.claim([add_email(text="x" * 2 * HELD_OCTETS)])]
    running = [gevent.spawn(handle, email) for email in rows]
    gevent.joinall(running, count=8)
    assert len(fetching) == 4
    assert handle(plain) == "opened"
    go_on.set()
    gevent.joinall(running, raise_error=True)
    assert [greenlet.value for greenlet in running] == (["opened"] * 2 + ["busy"] * 2) * 2 + ["busy"] * 4


def test_no_row_has_more_than_a_hundred_attachments_fetched(
    add_email: Callable[..., str], deliver: Callable[..., None], query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has room for thousands: each is a request to a server of others."""
    fetched: list[object] = []
    monkeypatch.setattr(large_mails, "fetch", lambda *_: fetched.append(1))
    few, many = ([{"filename": "a", "path": "https://x.example/a"}] * count for count in (100, 101))
    deliver(add_email(attachments=few))
    assert len(fetched) == 100
    deliver(add_email(attachments=many))
    assert len(fetched) == 100
    assert query("SELECT status, provider_last_error_code FROM emails ORDER BY status") == [
        ("failed", "TooManyAttachments"),
        ("sent", None),
    ]


def test_what_is_small_enough_comes_with_its_row(add_email: Callable[..., str], outgoing: Outgoing) -> None:
    content = encoded(b"x" * 100_000)
    sizes = {
        add_email(attachments=[{"filename": "a", "content": content}]): False,
        add_email(text="x" * HELD_OCTETS): False,
        add_email(text="x" * HELD_OCTETS, html="x"): True,
        add_email(text="é" * (HELD_OCTETS // 2 + 1)): True,
        add_email(attachments=[{"filename": "a", "content": "A" * 10_000_000}]): True,
        add_email(attachments=None): False,
    }
    for found in outgoing.claim(list(sizes)):
        email = email_of(found)
        assert email.large is sizes[email.id]
        if email.large:
            assert (email.text, email.html, email.attachments) == ("", "", ())


def test_nothing_is_left_in_the_folder(
    add_email: Callable[..., str], deliver: Callable[..., None], ses: Ses, tmp_path: Path
) -> None:
    deliver(add_email(text="x" * 2 * HELD_OCTETS))
    assert len(ses.taken()) == 1
    assert os.listdir(tmp_path) == []
    assert row().large is False


class Collected:
    """What a row holds, put together again."""

    def begin(self) -> None:
        self.columns: dict[str, bytes] = {}
        self.attachments: dict[int, bytes] = {}

    def text(self, column: str, pieces: Iterator[bytes]) -> None:
        self.columns[column] = b"".join(pieces)

    def contents(self, pieces: Iterator[tuple[int, bytes]]) -> None:
        for number, octets in pieces:
            self.attachments[number] = self.attachments.get(number, b"") + octets


def test_no_octet_is_lost_where_a_piece_ends(add_email: Callable[..., str], database: Database) -> None:
    sizes = [row_contents._PIECE * count + more for count in (1, 2) for more in (-1, 0, 1)]
    texts = ["a" * (size - 1) + "b" for size in (1, *sizes)]
    for text, html in itertools.pairwise(texts):
        attachments = [{"filename": "x", "content": each} for each in texts] if text == texts[0] else []
        email_id = add_email(text=text, html=html, attachments=attachments)
        RowContents(database).read(email_id, read := Collected())
        assert read.columns == {"text": text.encode(), "html": html.encode()}, (len(text), len(html))
        assert [read.attachments[n].decode() for n in sorted(read.attachments)] == (texts if attachments else [])


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_no_attachment_is_lost_where_a_part_of_them_ends(
    add_email: Callable[..., str], database: Database, more: int
) -> None:
    for count in (1, 2):
        number = count * row_contents._ENTRIES_AT_A_TIME + more
        email_id = add_email(attachments=[{"filename": str(each), "content": "QQ=="} for each in range(number)])
        entries = RowContents(database).entries(email_id)
        assert [entry.filename for entry in entries] == [str(each) for each in range(number)]
