"""The same bytes, however the network cuts them, make the same dialogue."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.smtp.replies import Reply
from relay.smtp.spool import Body
from tests.support.dialogue_stage import Stage
from tests.support.encounter import Encounter, converse

LINES = st.sampled_from(
    [
        b"EHLO client.example",
        b"HELO client.example",
        b"NOOP",
        b"RSET",
        b"HELP",
        b"VRFY x",
        b"STARTTLS",
        b"AUTH PLAIN " + base64.b64encode(b"\0any\0good"),
        b"AUTH PLAIN " + base64.b64encode(b"\0any\0bad"),
        b"AUTH PLAIN " + base64.b64encode(b"\0any\0bug"),
        b"AUTH PLAIN",
        b"AUTH LOGIN",
        b"*",
        base64.b64encode(b"\0any\0good"),
        base64.b64encode(b"good"),
        b"MAIL FROM:<a@b.example>",
        b"MAIL FROM:<a@b.example> SIZE=99999",
        b"MAIL FROM:<a@b.example> BODY=8BITMIME SMTPUTF8",
        b"RCPT TO:<c@d.example>",
        b"RCPT TO:<e@d.example>",
        b"RCPT TO:<refused@d.example>",
        b"RCPT TO:<bug@d.example>",
        b"RCPT TO:<nobody>",
        b"DATA",
        b"BREW coffee",
        b"",
        b"NOOP " + b"x" * 5000,
        b"x" * 13000,
    ]
).map(lambda line: line + b"\r\n")
OCTETS = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"..", b"a", b"word ", b"\0", b"\xff", b"y" * 700]),
    max_size=12,
).map(b"".join)
ENDS = st.sampled_from([b"\r\n.\r\n"] * 6 + [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b""])
LOGIN = b"EHLO client.example\r\nAUTH PLAIN " + base64.b64encode(b"\0any\0good") + b"\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
CHUNKS = st.tuples(OCTETS, st.sampled_from([b"", b"", b" LAST"])).map(
    lambda chunk: b"BDAT %d%s\r\n" % (len(chunk[0]), chunk[1]) + chunk[0]
)
MESSAGES = st.tuples(OCTETS, ENDS).map(lambda message: ENVELOPE + b"DATA\r\n" + message[0] + message[1])
CHUNKED = st.lists(CHUNKS, min_size=1, max_size=3).map(lambda chunks: ENVELOPE + b"".join(chunks))
SPEECH = st.tuples(
    st.sampled_from([LOGIN, LOGIN, LOGIN, b""]),
    st.lists(st.one_of(LINES, LINES, MESSAGES, CHUNKED, CHUNKS, OCTETS), max_size=8).map(b"".join),
    st.sampled_from([b"QUIT\r\n", b"QUI", b""]),
).map(b"".join)
CUTS = st.lists(st.integers(0, 40_000), max_size=20)


def cut(octets: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(octets) + 1) for place in places} | {0, len(octets)})
    return [octets[begin:end] for begin, end in pairwise(ends)]


def outcomes(encounter: Encounter) -> list[tuple[Reply, str]]:
    """Without the size: a refused message is measured only as far as it was kept."""
    return [(verdict.reply, verdict.outcome) for verdict in encounter.connection_log.verdicts]


@settings(max_examples=1000, deadline=None)
@given(SPEECH, CUTS)
def test_same_transcript_in_process(speech: bytes, places: list[int]) -> None:
    before = Body.in_memory
    whole, at_once = converse([speech])
    pieces, cut_up = converse(cut(speech, places))
    assert pieces == whole
    assert cut_up.services.messages == at_once.services.messages
    assert outcomes(cut_up) == outcomes(at_once)
    assert Body.in_memory == before
    assert cut_up.connection_log.refusals == at_once.connection_log.refusals
    assert all(isinstance(error, RuntimeError) and "a bug in" in str(error) for error in at_once.connection_log.errors)


def test_an_octet_at_a_time() -> None:
    speech = (
        LOGIN
        + ENVELOPE
        + b"DATA\r\nSubject: x\r\n\r\n..\r\n.\r\n"
        + ENVELOPE
        + b"BDAT 2\r\n\r\nBDAT 1 LAST\r\n.QUIT\r\n"
    )
    whole, at_once = converse([speech])
    pieces, cut_up = converse([speech[at : at + 1] for at in range(len(speech))])
    assert pieces == whole
    assert cut_up.services.messages == at_once.services.messages
    assert [body for _, _, body in cut_up.services.messages] == [b"Subject: x\r\n\r\n.\r\n", b"\r\n."]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    settings = {"max_message_size_bytes": 2000, "max_recipients": 3, "spool_threshold_bytes": 1000}
    directory: Path = tmp_path_factory.mktemp("pieces")
    with Stage(directory, {"open": {"settings": settings}}) as made:
        yield made


def over_tcp(stage: Stage, pieces: list[bytes]) -> bytes:
    said = b""
    with stage.connect("open") as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            client.shutdown(1)
        except OSError:
            # The server has closed; what it said before is there to be read.
            pass
        while octets := client.recv(65536):
            said += octets
    return said


@settings(max_examples=40, deadline=None)
@given(SPEECH, CUTS)
def test_same_transcript_over_tcp(stage: Stage, speech: bytes, places: list[int]) -> None:
    if b"QUIT" in speech[:-6] or b"BDAT" in speech:
        # What follows a last word may reset the connection before that word is read; in process it can't.
        places = []
    stage.newly_accepted()
    whole = over_tcp(stage, [speech])
    messages = stage.newly_accepted()
    assert over_tcp(stage, cut(speech, places)) == whole
    assert stage.newly_accepted() == messages
