"""Header injection: no line end and no NUL where the stored text becomes a header again, encoded or decoded."""

from __future__ import annotations

import base64
import itertools
import re
import unicodedata
from collections.abc import Iterator
from email.header import decode_header, make_header

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.mail import Limits, Message, Unusable, parse

#: What a program downstream may take for the end of a line, or of a string.
BREAKS = re.compile("[\r\n\0\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
#: The same where the text goes out as MIME by a library that encodes it: only these are dangerous there.
LINE_ENDS = re.compile("[\r\n\0]")
INJECTED = "Bcc: victim@evil.example"


def header_texts(message: Message) -> Iterator[str]:
    """Every text of a row that the worker makes a header of."""
    yield message.sender
    yield message.subject
    yield from itertools.chain(message.from_addresses, message.to, message.cc, message.bcc, message.reply_to)
    for name, value in message.headers.items():
        assert re.fullmatch(r"[!-9;-~]+", name), name
        yield value
    for attachment in message.attachments:
        yield attachment.filename
        yield attachment.content_type or ""
        yield attachment.content_id or ""
    yield message.idempotency_key or ""
    for name, value in message.tags:
        yield name
        yield value


def check(raw: bytes) -> Message | None:
    """Reads a message and looks for a line end; None where it is refused."""
    try:
        message = parse(raw, Limits(allow_utf8_local_parts=True))
    except Unusable as unusable:
        refused = unusable.detail
    else:
        return checked(message)
    assert not LINE_ENDS.search(refused)
    return None


def checked(message: Message) -> Message:
    """The message, if no text of its can break a header."""
    for text in header_texts(message):
        assert not LINE_ENDS.search(text), text
    for text in (message.sender, *message.headers.values(), *(each.content_type or "" for each in message.attachments)):
        assert not BREAKS.search(text), text
    # A program that decodes the encoded words finds none either.
    for text in (message.sender, *message.headers.values()):
        # But for a local part that the settings allow.
        assert text.isascii() or (text is message.sender and text.rpartition("<")[0].isascii())
        assert not LINE_ENDS.search(decoded(text)), text
    for attachment in message.attachments:
        assert not BREAKS.search(attachment.filename)
        assert "/" not in attachment.filename
        assert "\\" not in attachment.filename
        # Nor anything that would turn the name around to hide its extension.
        assert not any(unicodedata.bidirectional(each) in ("RLO", "LRO", "RLI", "LRI") for each in attachment.filename)
    return message


def decoded(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (LookupError, UnicodeError, ValueError):
        # A word that Python's reader can't take apart stays as it is.
        return text


def words(text: str) -> list[str]:
    """Encoded words that mean `text`, in each way to write them."""
    octets = text.encode()
    quoted = "".join(f"={octet:02X}" for octet in octets)
    # As UTF-7 may write them, which Python's encoder does not.
    seven = "".join(f"+{base64.b64encode(each.encode('utf-16-be')).decode().rstrip('=')}-" for each in text)
    wide = base64.b64encode(text.encode("utf-16-be")).decode()
    return [
        f"=?utf-8?q?{quoted}?=",
        f"=?utf-8?b?{base64.b64encode(octets).decode()}?=",
        f"=?utf-8*en?Q?{quoted}?=",
        f"=?utf-16be?b?{wide}?=",
        f"=?utf-7?q?{seven}?=",
        f"=?iso-2022-jp?b?{base64.b64encode(octets).decode()}?=",
        f"=?x-unknown?q?{quoted}?=",
        # Cut in two between CR and LF, and a word within a word.
        f"=?utf-8?q?{quoted[:6]}?= =?utf-8?q?{quoted[6:]}?=",
        f"=?utf-8?q?=3D=3Futf-8=3Fq=3F{quoted.replace('=', '=3D')}=3F=3D?=",
    ]


ATTACKS = [
    *words(f"x\r\n{INJECTED}"),
    *words(f"x\n{INJECTED}"),
    *words(f"x\r{INJECTED}"),
    *words(f"x\0{INJECTED}"),
    *words(f"x\u2028{INJECTED}\x85{INJECTED}"),
    f"x\r{INJECTED}",
    f"x\0{INJECTED}",
    f"x\x0b{INJECTED}\x0c\x1d",
    f"x\\\r{INJECTED}",
    f"x%0d%0a{INJECTED}",
    f"x\r\n\t{INJECTED}",
    f"x\u560d\u560a{INJECTED}",
]
#: Where an attack is put, each followed by the rest of a message.
PLACES = {
    "display name": "From: {} <ann@example.com>\r\nTo: to@x.example\r\n\r\nx",
    "quoted display name": 'From: "{}" <ann@example.com>\r\nTo: "{}" <to@x.example>\r\n\r\nx',
    "comment": "From: ann@example.com ({})\r\nTo: to@x.example ({})\r\n\r\nx",
    "local part": 'From: ann@example.com\r\nTo: "{}"@x.example, to@x.example\r\n\r\nx',
    "domain": "From: ann@example.com\r\nTo: to@{}, to@x.example\r\n\r\nx",
    "group": "From: ann@example.com\r\nTo: {}: to@x.example;\r\n\r\nx",
    "reply-to": "From: ann@example.com\r\nTo: to@x.example\r\nReply-To: {} <{}@x.example>\r\n\r\nx",
    "subject": "From: ann@example.com\r\nTo: to@x.example\r\nSubject: {}\r\n\r\nx",
    "value": "From: ann@example.com\r\nTo: to@x.example\r\nX-Own: {}\r\nX-Own: {}\r\n\r\nx",
    "name": "From: ann@example.com\r\nTo: to@x.example\r\nX-{}: value\r\n\r\nx",
    "references": "From: ann@example.com\r\nTo: to@x.example\r\nReferences: <{}@x>\r\nReferences: <b>\r\n\r\nx",
    "idempotency key": "From: ann@example.com\r\nTo: to@x.example\r\nIdempotency-Key: {}\r\n\r\nx",
    "tag": "From: ann@example.com\r\nTo: to@x.example\r\nX-OpenSend-Tag: {}=y\r\nX-OpenSend-Tag: y={}\r\n\r\nx",
    "media type": "From: ann@example.com\r\nTo: to@x.example\r\nContent-Type: application/{}\r\n\r\nx",
    "charset": 'From: ann@example.com\r\nContent-Type: text/x-a; charset="{}"\r\n\r\nx',
    "name parameter": 'From: ann@example.com\r\nContent-Type: image/png; name="{}"\r\n\r\nx',
    "file name": 'From: ann@example.com\r\nContent-Disposition: attachment; filename="{}"\r\n\r\nx',
    "bare file name": "From: ann@example.com\r\nContent-Disposition: attachment; filename={}\r\n\r\nx",
    "extended file name": "From: ann@example.com\r\nContent-Disposition: attachment; filename*=utf-8''{}\r\n\r\nx",
    "file name in pieces": (
        'From: ann@example.com\r\nContent-Disposition: attachment; filename*0="{}"; filename*1*=%0d%0a{}\r\n\r\nx'
    ),
    "content id": "From: ann@example.com\r\nContent-Type: image/png\r\nContent-ID: <{}>\r\n\r\nx",
    "subject of an attached message": (
        "From: ann@example.com\r\nContent-Type: message/rfc822\r\n\r\nSubject: {}\r\n\r\nx"
    ),
    "uuencoded name": (
        "From: ann@example.com\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n"
        "begin 644 {}\r\n#0V%T\r\n`\r\nend\r\n"
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_line_end_in_what_becomes_a_header(place: str) -> None:
    read = 0
    for attack in ATTACKS:
        message = check(PLACES[place].replace("{}", attack).encode())
        if message is not None:
            read += 1
            # It never becomes a further recipient, nor a header.
            assert "bcc" not in map(str.lower, message.headers)
            assert message.bcc == ()
    assert read or place in ("idempotency key", "tag")


@pytest.mark.parametrize("attack", [f"x\r{INJECTED}", f"x\0{INJECTED}", f"x\x85{INJECTED}", "x\x1b[2J", "x\x7f"])
def test_no_control_character_in_a_key_or_tag(attack: str) -> None:
    for field in ("Idempotency-Key", "X-OpenSend-Tag", "X-OpenSend-Idempotency-Key", "Resend-Idempotency-Key"):
        message = check(f"From: ann@example.com\r\nTo: to@x.example\r\n{field}: a={attack}\r\n\r\nx".encode())
        # Refused, unless the reading of header fields has taken it out already.
        if message is not None:
            assert message.idempotency_key == f"a={attack}".replace("\r", " ").replace("\0", "")
            assert message.idempotency_key.isprintable()


PIECES = st.sampled_from(
    [
        *("\r", "\n", "\r\n", "\0", " ", "\t", '"', "<", ">", "(", ")", ":", ";", ",", "=", "@", "\\", "'", "%0d%0a"),
        *("=?utf-8?q?", "=?utf-8?b?", "=?utf-7?q?", "?=", "=0D=0A", "=00", "DQo=", "+AA0ACg-", "*0*=", "utf-8''"),
        *(
            "\u2028",
            "\x85",
            "\u202e",
            "é",
            "😀",
            "Bcc",
            "ann@example.com",
            "x",
            "filename",
            "charset",
            "/",
            "..",
            "\ud83d",
        ),
    ]
)
GARBLED = st.lists(PIECES, max_size=25).map("".join)


@settings(max_examples=700)
@given(st.sampled_from(sorted(PLACES)), GARBLED)
@example("quoted display name", "\u202eann@example.com\n")
@example("quoted display name", "\u2028ann@example.com\n")
def test_whatever_is_written_where(place: str, text: str) -> None:
    check(PLACES[place].replace("{}", text).encode("utf-8", "surrogatepass"))


@settings(max_examples=300)
@given(st.sampled_from(sorted(PLACES)), st.binary(max_size=120))
def test_whatever_octets_are_written_where(place: str, octets: bytes) -> None:
    check(PLACES[place].encode().replace(b"{}", octets))


@settings(max_examples=300)
@given(st.sampled_from(sorted(PLACES)), st.text(max_size=40).flatmap(lambda text: st.sampled_from(words(text))))
def test_whatever_encoded_words_mean(place: str, word: str) -> None:
    check(PLACES[place].replace("{}", word).encode())
