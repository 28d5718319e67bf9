"""SMTP smuggling: whatever another server takes for the end of data, here it never yields a second message.

The published attack: a message whose body holds an end of data that this server sees and the one before it does not,
or the other way round, followed by commands. Here an end of data is CRLF . CRLF; what only looks like one is either
kept as data or refused at once, and then nothing that follows counts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.dialogue_stage import Stage
from tests.support.encounter import Encounter, converse

LOGIN = b"EHLO client.example\r\nAUTH PLAIN " + base64.b64encode(b"\0any\0good") + b"\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
FIRST = b"Subject: first\r\n\r\nfirst"
SMUGGLED = b"MAIL FROM:<evil@b.example>\r\nRCPT TO:<victim@d.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nsecond"
END = b"\r\n.\r\n"

CR, LF, CRLF = b"\r", b"\n", b"\r\n"
#: Refused as soon as seen: a client that means it waits for an answer, one that doesn't is up to no good.
REFUSED = [LF + b"." + LF, LF + b"." + CRLF, CRLF + b"." + LF]
#: Kept as data: no client waits for an answer behind these.
KEPT = [
    CR + b"." + CR,
    CR + b"." + CRLF,
    CRLF + b"." + CR + b"x",
    CR + b"." + LF,
    LF + b"." + CR + b"x",
    CR + LF + CR + b"." + CR + LF,
    CRLF + b"\0." + CRLF,
    CRLF + b".\0" + CRLF,
    CRLF + b"\0.\0" + CRLF,
    b"\0" + CR + b"." + CR + b"\0",
    CRLF + b". " + CRLF,
    CRLF + b" ." + CRLF,
    CRLF + b".\t" + CRLF,
    CRLF + b"." + CR + CRLF,
    CRLF + b"." + CR + CR + LF,
    CR + CRLF[:1] + b"." + CRLF,
    CRLF + b".." + CRLF,
    b"\x0b.\x0b",
    b"\x0c.\x0c",
    b"\x85.\x85",
    "\u2028.\u2028".encode(),
    b"\x8d\x8a.\x8d\x8a",
    b"=0D=0A.=0D=0A",
    b"\r\0\n.\r\0\n",
    CRLF + b".\r\0\n",
]


def without_stuffing(data: bytes) -> bytes:
    return CRLF.join(line.removeprefix(b".") for line in data.split(CRLF))


def codes(transcript: bytes) -> list[int]:
    """Of each reply."""
    return [int(line[:3]) for line in transcript.splitlines() if line[3:4] == b" "]


BEFORE = [220, 250, 235, 250, 250, 354]


def check_refused(transcript: bytes, encounter: Encounter) -> None:
    assert codes(transcript) == [*BEFORE, 550]
    assert b"\r\n550 5.6.11 " in transcript
    assert encounter.services.messages == []


def check_kept(variant: bytes, transcript: bytes, encounter: Encounter) -> None:
    assert codes(transcript) == [*BEFORE, 250, 221]
    [(recipients, _, body)] = encounter.services.messages
    assert recipients == ("c@d.example",)
    assert body == without_stuffing(FIRST + variant + SMUGGLED + CRLF)


@pytest.mark.parametrize("variant", REFUSED, ids=repr)
def test_refused_wherever_it_is_cut(variant: bytes) -> None:
    before = LOGIN + ENVELOPE + FIRST
    after = SMUGGLED + END + b"QUIT\r\n"
    check_refused(*converse([before + variant + after]))
    for at in range(len(variant) + 1):
        check_refused(*converse([before + variant[:at], variant[at:] + after]))
        check_refused(*converse([before, variant[:at], variant[at:], after]))
    check_refused(*converse([before, *(variant[at : at + 1] for at in range(len(variant))), after]))


@pytest.mark.parametrize("variant", KEPT, ids=repr)
def test_kept_wherever_it_is_cut(variant: bytes) -> None:
    before = LOGIN + ENVELOPE + FIRST
    after = SMUGGLED + END + b"QUIT\r\n"
    check_kept(variant, *converse([before + variant + after]))
    for at in range(len(variant) + 1):
        check_kept(variant, *converse([before + variant[:at], variant[at:] + after]))
        check_kept(variant, *converse([before, variant[:at], variant[at:], after]))
    check_kept(variant, *converse([before, *(variant[at : at + 1] for at in range(len(variant))), after]))


@pytest.mark.parametrize("variant", REFUSED, ids=repr)
def test_no_hang_for_a_client_that_means_it(variant: bytes) -> None:
    """It sends nothing more, and hears at once what is wrong."""
    encounter = Encounter()
    encounter.send(LOGIN + ENVELOPE + FIRST + variant)
    assert b"\r\n550 5.6.11 " in encounter.rest_until_closed()
    assert encounter.services.messages == []


@pytest.mark.parametrize("beginning", [b".\n", b"\n.\n", b"\n.\r\n", b"\r\n.\n"], ids=repr)
def test_also_at_the_beginning_of_data(beginning: bytes) -> None:
    """The line end before the first dot is the DATA command's own."""
    check_refused(*converse([LOGIN + ENVELOPE + beginning + SMUGGLED + END]))


def test_in_a_message_that_is_too_large() -> None:
    for variant, count in product(REFUSED, (1990, 3000, 100_000)):
        transcript, encounter = converse([LOGIN + ENVELOPE + b"x" * count + variant + SMUGGLED + END + b"QUIT\r\n"])
        assert codes(transcript) == [*BEFORE, 550]
        assert encounter.services.messages == []


def test_chunks_end_by_count_alone() -> None:
    for variant in [*REFUSED, *KEPT, END]:
        chunk = FIRST + variant + SMUGGLED + END
        speech = LOGIN + ENVELOPE.removesuffix(b"DATA\r\n") + b"BDAT %d LAST\r\n" % len(chunk) + chunk + b"QUIT\r\n"
        transcript, encounter = converse([speech])
        assert codes(transcript) == [*BEFORE[:-1], 250, 221]
        assert [body for _, _, body in encounter.services.messages] == [chunk]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from([CR, LF, CRLF, b".", b"..", b"\0", b" ", b"x"]), max_size=8).map(b"".join),
    st.lists(st.integers(0, 300), max_size=6),
)
def test_any_mixture_yields_one_message_at_most(mixture: bytes, places: list[int]) -> None:
    """Unless it holds CRLF . CRLF itself, which is the sender's own word."""
    data = FIRST + mixture + SMUGGLED
    ends = sorted({0, len(data), *(place % len(data) for place in places)})
    pieces = [data[begin:end] for begin, end in pairwise(ends)]
    transcript, encounter = converse([LOGIN + ENVELOPE, *pieces, END, b"QUIT\r\n"])
    if END in data:
        assert len(encounter.services.messages) <= 2
    else:
        assert codes(transcript) in ([*BEFORE, 250, 221], [*BEFORE, 550])
        assert len(encounter.services.messages) == codes(transcript).count(250) - 3


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("smuggling"), {"open": {}, "certified": {"tls": True}}) as made:
        yield made


@pytest.mark.parametrize("implicit_tls", [False, True])
@pytest.mark.parametrize("variant", REFUSED + KEPT, ids=repr)
def test_over_tcp(stage: Stage, variant: bytes, implicit_tls: bool) -> None:
    stage.newly_accepted()
    said = b""
    with stage.connect("certified" if implicit_tls else "open", implicit_tls=implicit_tls) as client:
        client.sendall(LOGIN + ENVELOPE + FIRST + variant + SMUGGLED + END + b"QUIT\r\n")
        while octets := client.recv(65536):
            said += octets
    messages = stage.newly_accepted()
    if variant in REFUSED:
        assert codes(said) == [*BEFORE, 550]
        assert messages == []
    else:
        assert codes(said) == [*BEFORE, 250, 221]
        assert [message.recipients for message in messages] == [["c@d.example"]]
