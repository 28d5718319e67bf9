"""Transfer encodings against the standard library's decoders, and content that is held as its Base64."""

from __future__ import annotations

import base64
import quopri
import random
import re
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.core.frozen import frozen
from relay.delivery import transfer
from relay.delivery.compose import Unsendable, content_of
from relay.delivery.content import SEAM, Encoded, Held, Woven, octets_of, woven
from relay.delivery.row import OutgoingAttachment

#: What lines begin and end with, what is escaped, and what reaches the limits of a line.
PIECES = (
    *(
        ".",
        "..",
        "From ",
        "From",
        "F",
        "\nFrom ",
        "\n.",
        " ",
        "  ",
        "\t",
        " \n",
        "\t\n",
        "\n",
        "\n\n",
        "=",
        "==",
        "=\n",
    ),
    *("a" * 37, "b" * 72, "c" * 73, "d" * 74, "e" * 75, "f" * 76, "g" * 77, "." * 40, "." * 80, "From " * 16, " " * 80),
    *("=" * 30, "é", "ü" * 30, "漢字", "\x00", "\x7f", "\x1b", '<a href="https://x.example/?a=1">', "word ", "x" * 500),
    "".join(map(chr, range(0xA0, 0x100))),
)


@frozen
class Cut:
    """Content that comes in these pieces, as that of a file does."""

    parts: Sequence[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))

    def pieces(self) -> Iterator[bytes]:
        return filter(None, iter(self.parts))


def cut(octets: bytes, chance: random.Random) -> Cut:
    places = sorted(chance.randrange(len(octets) + 1) for _ in range(chance.randrange(4)))
    return Cut([octets[start:end] for start, end in zip([0, *places], [*places, len(octets)], strict=True)])


def texts(chance: random.Random) -> str:
    return "".join(chance.choices(PIECES, k=chance.randrange(1, 14)))


def test_a_text_is_read_as_itself_whatever_its_lines_are() -> None:
    chance = random.Random(16)
    names = set()
    for _ in range(3_000):
        octets = texts(chance).encode()
        name, pieces = transfer.text_body(Held(octets))
        names.add(name)
        encoded = b"".join(pieces())
        assert b"\n" not in encoded.replace(b"\r\n", b"")
        lines = encoded.split(b"\r\n")
        assert max(map(len, lines)) <= 76
        assert not [line for line in lines if line.startswith((b".", b"From "))]
        if name == "quoted-printable":
            assert not [line for line in lines if line.endswith((b" ", b"\t"))]
            assert not re.search(rb"[^\r\n\t -~]", encoded)
            assert quopri.decodestring(encoded.replace(b"\r\n", b"\n")) == octets
            assert len(encoded) * 3 <= len(octets) * 4
        elif name == "base64":
            assert base64.b64decode(encoded) == octets.replace(b"\n", b"\r\n")
        from_file, pieces_of_file = transfer.text_body(cut(octets, chance))
        assert (from_file, b"".join(pieces_of_file())) == (name, encoded)
    assert names == {"7bit", "quoted-printable", "base64"}


def token(chance: random.Random) -> bytes:
    """As in a tracked link, and longer and shorter ones: its full stop may be where a line would begin."""
    size = chance.choice((chance.randrange(1, 90), chance.randrange(340, 460), 75 * chance.randrange(1, 20), 5_550))
    return b"t" * size + chance.choice((b".", b".", b"")) + b"From" * chance.randrange(1, 12)


def test_tokens_are_cut_apart_from_the_text_around_them() -> None:
    chance = random.Random(23)
    names: dict[str, int] = {}
    for number in range(4_000):
        pieces = [(texts(chance).encode(), token(chance)) for _ in range(chance.randrange(1, 6))]
        pieces = [(b'"' + text, behind) for text, behind in pieces]
        last = chance.choice(("", '">', '"' + texts(chance))).encode()
        if number % 5 == 0:
            pieces, last = [(text.replace(b"\n", b"\r\n"), behind) for text, behind in pieces], last + b"\r"
        content = woven([*(((b'"',), text[1:], (behind,)) for text, behind in pieces), ((last,), b"", ())])
        octets = b"".join(text + behind for text, behind in pieces) + last
        assert octets_of(content) == octets
        assert content.size == len(octets)
        plain = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        name, all_encoded = transfer.text_body(content)
        names[name] = names.get(name, 0) + 1
        encoded = b"".join(all_encoded())
        if name == "7bit":
            assert (name, encoded) == (name, plain.replace(b"\n", b"\r\n"))
            continue
        lines = encoded.split(b"\r\n")
        assert max(map(len, lines)) <= 76
        if name == "base64":
            assert base64.b64decode(encoded) == plain.replace(b"\n", b"\r\n")
            continue
        assert b"\n" not in encoded.replace(b"\r\n", b"")
        assert not [line for line in lines if line.startswith((b".", b"From "))]
        assert not [line for line in lines if line.endswith((b" ", b"\t"))]
        assert not re.search(rb"[^\r\n\t -~]", encoded)
        assert quopri.decodestring(encoded.replace(b"\r\n", b"\n")) == plain
        assert len(encoded) * 3 <= len(plain) * 4
    assert names.keys() == {"7bit", "quoted-printable", "base64"}
    assert names["quoted-printable"] > 1_000
    assert names["base64"] > 100


def test_a_text_of_letters_that_are_escaped_is_base64_with_tokens_too() -> None:
    content = Woven(b'"'.join(["漢字".encode() * 200, SEAM, b">"]), [b"t" * 400])
    name, pieces = transfer.text_body(content)
    assert name == "base64"
    assert base64.b64decode(b"".join(pieces())) == octets_of(content)


def test_no_octet_is_lost_where_a_step_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps so short that each text has many.
    monkeypatch.setattr(transfer, "_STEP", 57)
    monkeypatch.setattr(transfer, "_SHORT_STEP", 20)
    chance = random.Random(18)
    for _ in range(1_000):
        octets = texts(chance).encode()
        for content in (Held(octets), cut(octets, chance)):
            quoted = b"".join(transfer._quoted(transfer._with_lf(content.pieces())))
            assert max(map(len, quoted.split(b"\r\n"))) <= 76
            assert quopri.decodestring(quoted.replace(b"\r\n", b"\n")) == octets
            assert base64.b64decode(b"".join(transfer.base64_lines(content.pieces()))) == octets


def test_lines_that_are_cut_together_are_cut_as_each_by_itself() -> None:
    chance = random.Random(17)
    for number in range(300):
        # Where all lines can be cut together, and with one among them now and then that can't.
        usual = "<p>text text</p>\n", "x" * 500 + "\n", "é", "=", ".", "F", "word ", "\n"
        pieces = chance.choices(usual, k=chance.randrange(1, 400)) + chance.choices(PIECES, k=number % 3)
        chance.shuffle(pieces)
        lines = "".join(pieces).encode() + b"\n"
        escaped = re.sub(rb"[^\n\t -<>-~]", lambda octet: b"=%02X" % octet[0][0], lines)
        assert transfer._quoted_lines(lines) == transfer._cut_lines(escaped.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("text", ["é" * 400, "a" * 100 + "é" * 22, "a" * 100 + "é" * 13, "=" * 500, "漢字 and more"])
def test_the_smaller_one_of_the_encodings_is_taken(text: str) -> None:
    octets = text.encode()
    name, _ = transfer.text_body(Held(octets))
    assert (name == "base64") == (len(b"".join(transfer._quoted([octets]))) * 3 > len(octets) * 4)
    assert (name, *transfer.text_body(cut(octets, random.Random(1)))[:1]) == (name, name)


CHARACTERS = st.text(st.sampled_from("QUJDRg+/=AZaz09-_ \r\n\u00e9"), max_size=24)


def attached(characters: str) -> OutgoingAttachment:
    return OutgoingAttachment(filename="a", content=characters, path=None, content_type=None, content_id=None)


@given(CHARACTERS | st.binary(max_size=200).map(lambda octets: base64.b64encode(octets).decode()))
@example("")
@example("QQ==")
@example("QR==")
@example("QUI=")
@example("QUJ=")
@example("Q===")
@example("====")
@example("QQ==QUJD")
@example("QU=JQUI=")
@example("QUJD\nQUJD")
def test_base64_that_is_sent_on_as_it_is_has_one_form(characters: str) -> None:
    octets = characters.encode("ascii", "ignore")
    decoder = transfer.Base64Decoder()
    try:
        decoded = decoder.decode(octets) + decoder.end()
    except transfer.NotBase64:
        with pytest.raises(Unsendable):
            content_of(attached(characters))
        return
    assert transfer.is_canonical(octets) == (base64.b64encode(decoded) == octets)
    content = content_of(attached(characters))
    assert isinstance(content, Encoded) == transfer.is_canonical(octets)
    assert content.size == len(decoded)
    assert octets_of(content) == b"".join(content.pieces()) == decoded
    assert list(transfer.base64_body(content)) == list(transfer.base64_lines(Held(decoded).pieces()))


@pytest.mark.parametrize("size", [*range(54, 62), 57 * 32 - 1, 57 * 32, 57 * 32 + 1, 57 * 2000 + 5])
def test_lines_of_base64_have_76_characters(size: int) -> None:
    octets = random.Random(size).randbytes(size)
    body = b"".join(transfer.base64_body(Encoded(base64.b64encode(octets))))
    assert body == base64.encodebytes(octets).replace(b"\n", b"\r\n")
    assert body == b"".join(transfer.base64_body(Held(octets)))
