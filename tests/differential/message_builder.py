"""Well-formed messages built by hypothesis from a model, and what the model says should be stored of them.

Nothing of the relay is used here: the octets are put together with the standard library, one MIME construct at a time.
"""

from __future__ import annotations

import base64
import itertools
import quopri
import unicodedata
from dataclasses import dataclass, field
from email.header import Header
from typing import Final
from urllib.parse import quote

from hypothesis import strategies as st

CRLF = b"\r\n"
_CHARSETS = {
    "utf-8": st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"),
    "us-ascii": st.characters(max_codepoint=0x7E, exclude_characters="\0\r"),
    "windows-1252": st.sampled_from("abc xyz,.-=_?\n€„…†‰Š‹Œ‘’“”•–—™š›œ¡£§äöüßÿé"),
    "windows-1251": st.sampled_from("abc xyz\nабвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВ№"),
    "koi8-r": st.sampled_from("abc xyz\nабвгдежзийклмнопрстуфхцчшщъыьэюяАБВ"),
    "iso-2022-jp": st.sampled_from("abc xyz\n日本語のメールとカタカナ漢字表能"),
    "shift_jis": st.sampled_from("abc xyz\n日本語のメールとカタカナ漢字ソ表能①髙"),
    "gb18030": st.sampled_from("abc xyz\n简体中文邮件测试镕㐀"),
    "euc-kr": st.sampled_from("abc xyz\n한국어메일똠"),
    "big5": st.sampled_from("abc xyz\n繁體中文郵件功許"),
}
_PYTHON_NAMES = {"shift_jis": "cp932", "euc-kr": "cp949", "big5": "big5hkscs"}
_VISIBLE = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Co", "Cn"))


@dataclass(frozen=True)
class Body:
    """A text or HTML part. `text` has LF line ends."""

    text: str
    subtype: str
    charset: str
    encoding: str


@dataclass(frozen=True)
class File:
    """An attachment."""

    octets: bytes
    media_type: str
    name: str
    name_style: str
    encoding: str
    content_id: str | None
    disposition: str


@dataclass(frozen=True)
class Forwarded:
    """A message within the message."""

    subject: str
    octets: bytes


@dataclass(frozen=True)
class Multipart:
    """Parts within a part."""

    subtype: str
    children: tuple[Node, ...]
    preamble: str


Node = Body | File | Forwarded | Multipart


@dataclass(frozen=True)
class Mailbox:
    """A name, which may be empty, and an address."""

    name: str
    address: str


@dataclass(frozen=True)
class Model:
    """A whole message."""

    sender: Mailbox
    to: tuple[Mailbox, ...]
    cc: tuple[Mailbox, ...]
    subject: str
    headers: tuple[tuple[str, str], ...]
    root: Node
    raw_headers: bool


@dataclass(frozen=True)
class Piece:
    """What is seen at one place: the plain texts of it, and the HTML form, of which each text is HTML or not."""

    plain: tuple[str, ...] | None
    html: tuple[tuple[str, bool], ...] | None


@dataclass
class Expected:
    """What the model says of bodies and attachments."""

    pieces: list[Piece] = field(default_factory=list)
    files: list[File | Forwarded | Body] = field(default_factory=list)

    @property
    def html(self) -> tuple[tuple[str, bool], ...]:
        """The HTML form of all pieces, where one of them has one."""
        if all(piece.html is None for piece in self.pieces):
            return ()
        forms = (piece.html or tuple((text, False) for text in piece.plain or ()) for piece in self.pieces)
        return tuple(text for form in forms for text in form)

    @property
    def text(self) -> tuple[tuple[str, bool], ...]:
        """The plain form of all pieces, where one of them has one; with each text whether it is HTML."""
        if all(piece.plain is None for piece in self.pieces):
            return ()
        forms = (
            tuple((text, False) for text in piece.plain) if piece.plain is not None else piece.html or ()
            for piece in self.pieces
        )
        return tuple(text for form in forms for text in form)


def leaves(node: Node) -> list[Body | File | Forwarded]:
    """The parts that hold no others, in their order."""
    return [leaf for child in node.children for leaf in leaves(child)] if isinstance(node, Multipart) else [node]


def expected(node: Node) -> Expected:
    """What should be stored of a part."""
    if isinstance(node, Body):
        piece = Piece(None, ((node.text, True),)) if node.subtype == "html" else Piece((node.text,), None)
        return Expected([piece] if node.text.strip() else [])
    if not isinstance(node, Multipart):
        return Expected([], [node])
    below = [expected(child) for child in node.children]
    if node.subtype == "related":
        shown = next((number for number, child in enumerate(node.children) if _has_body(child)), None)
        for number, child in enumerate(node.children):
            if number != shown:
                below[number] = Expected([], leaves(child))
    found = Expected(
        [piece for each in below for piece in each.pieces], [file for each in below for file in each.files]
    )
    if node.subtype == "alternative":
        plain = [each for each in below if each.pieces and all(piece.plain is not None for piece in each.pieces)]
        html = [each for each in below if each.html]
        piece = Piece(tuple(text for text, _ in plain[-1].text) if plain else None, html[-1].html if html else None)
        found.pieces = [piece] if plain or html else []
    return found


def _has_body(node: Node) -> bool:
    return any(isinstance(leaf, Body) for leaf in leaves(node))


# --- strategies


@st.composite
def _bodies(draw: st.DrawFn) -> Body:
    charset = draw(st.sampled_from(sorted(_CHARSETS)))
    text = draw(st.text(_CHARSETS[charset], max_size=120))
    seven_bit = charset in ("us-ascii", "iso-2022-jp")
    encoding = draw(st.sampled_from(["quoted-printable", "base64", "7bit" if seven_bit else "8bit"]))
    return Body(text, draw(st.sampled_from(["plain", "html"])), charset, encoding)


@st.composite
def _files(draw: st.DrawFn) -> File:
    media_type = draw(
        st.sampled_from(["application/pdf", "image/png", "application/octet-stream", "text/csv", "text/calendar"])
    )
    stem = draw(
        st.text(_VISIBLE, min_size=1, max_size=60).filter(lambda text: not set(text) & set("/\\\u061c\u200e\u200f"))
    )
    name = (" ".join(stem.strip(" .").split()) or "file") + draw(st.sampled_from([".pdf", ".txt", ".tar.gz", ""]))
    plain = name.isascii()
    styles = ["rfc2231", "rfc2231-sections", "rfc2047", "raw"] + (["quoted"] if plain else [])
    # Text that looks like an encoded word can only be told from one by RFC 2231.
    style = draw(st.sampled_from(["rfc2231"] if "=?" in name or "'" in name else styles))
    return File(
        draw(st.binary(max_size=300)),
        media_type,
        name,
        style,
        draw(st.sampled_from(["base64", "base64", "base64-long", "quoted-printable", "binary"])),
        draw(st.none() | st.from_regex(r"[a-z0-9]{1,10}@[a-z]{1,8}\.example", fullmatch=True)),
        draw(st.sampled_from(["attachment", "inline"])) if not media_type.startswith("text/") else "attachment",
    )


_FORWARDED = st.builds(
    lambda subject, text: Forwarded(
        subject,
        b"From: x@inner.example\r\nSubject: " + subject.encode() + b"\r\n\r\n" + text.replace("\n", "\r\n").encode(),
    ),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ]{0,30}[A-Za-z0-9]", fullmatch=True).map(lambda text: " ".join(text.split())),
    st.text(st.characters(max_codepoint=0x7E, exclude_characters="\0\r"), max_size=60),
)


def _multiparts(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(
        Multipart,
        st.sampled_from(["mixed", "alternative", "related"]),
        st.lists(children, min_size=1, max_size=4).map(tuple),
        st.sampled_from(["", "This is a message in MIME format."]),
    )


_NODES = st.recursive(_bodies() | _files() | _FORWARDED, _multiparts, max_leaves=8)
_ALTERNATIVE = st.builds(
    Multipart, st.just("alternative"), st.lists(_bodies(), min_size=1, max_size=3).map(tuple), st.just("")
)
_LINE = st.text(_VISIBLE, max_size=80).map(lambda text: " ".join(text.split())).filter(lambda text: "=?" not in text)
_ADDRESS = st.from_regex(
    r"[a-z0-9][a-z0-9+_-]{0,12}(\.[a-z0-9]{1,8})?@[a-z][a-z0-9-]{0,10}[a-z0-9]\.example", fullmatch=True
)
#: What is not visible at the ends of a name is no part of it (docs/mime.md, addresses).
_PERSON = _LINE.filter(lambda name: "Cf" not in map(unicodedata.category, name[:1] + name[-1:]))
_MAILBOX = st.builds(Mailbox, _PERSON, _ADDRESS)


#: Not what reads as a mailbox with an IDN domain: that is stored with the domain as A-labels.
_HEADER_VALUE: Final = _LINE.filter(
    lambda value: bool(value) and (value.isascii() or "." not in value.partition("@")[2])
)


def models() -> st.SearchStrategy[Model]:
    """Messages of every shape; one in three of the shapes that most mails have."""
    return st.builds(
        Model,
        _MAILBOX,
        st.lists(_MAILBOX, min_size=1, max_size=4).map(tuple),
        st.lists(_MAILBOX, max_size=2).map(tuple),
        _LINE,
        st.lists(st.tuples(st.from_regex(r"X-[A-Z][a-z]{2,8}", fullmatch=True), _HEADER_VALUE), max_size=4).map(tuple),
        _bodies() | _ALTERNATIVE | _NODES,
        st.booleans(),
    )


# --- octets


def build(model: Model) -> bytes:
    """The message as a sound client would send it."""
    lines = [
        b"From: " + _mailbox(model.sender, model.raw_headers),
        b"To: " + b",\r\n ".join(_mailbox(each, model.raw_headers) for each in model.to),
    ]
    if model.cc:
        lines.append(b"Cc: " + b", ".join(_mailbox(each, model.raw_headers) for each in model.cc))
    lines.append(b"Subject: " + _words(model.subject, model.raw_headers))
    lines += [name.encode() + b": " + _words(value, model.raw_headers) for name, value in model.headers]
    lines.append(b"MIME-Version: 1.0")
    return CRLF.join(lines) + CRLF + _part(model.root, itertools.count())


def _words(text: str, raw: bool) -> bytes:
    if text.isascii() or raw:
        return text.encode()
    return Header(text, "utf-8", maxlinelen=60).encode(linesep="\r\n").encode()


def _mailbox(mailbox: Mailbox, raw: bool) -> bytes:
    if not mailbox.name:
        return mailbox.address.encode()
    if mailbox.name.isascii() or raw:
        escaped = mailbox.name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}" <{mailbox.address}>'.encode()
    return _words(mailbox.name, raw=False) + f" <{mailbox.address}>".encode()


def _part(node: Node, numbers: itertools.count[int]) -> bytes:
    if isinstance(node, Multipart):
        boundary = b"=_part_%d_'()+,./:?" % next(numbers)
        pieces = [b'Content-Type: multipart/%s;\r\n boundary="%s"\r\n\r\n' % (node.subtype.encode(), boundary)]
        pieces.append(node.preamble.encode() + (CRLF if node.preamble else b""))
        pieces += [b"--" + boundary + CRLF + _part(child, numbers) + CRLF for child in node.children]
        return b"".join(pieces) + b"--" + boundary + b"--\r\n"
    if isinstance(node, Forwarded):
        return b"Content-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n" + node.octets
    if isinstance(node, Body):
        octets = node.text.encode(_PYTHON_NAMES.get(node.charset, node.charset)).replace(b"\n", CRLF)
        head = f"Content-Type: text/{node.subtype}; charset={node.charset}\r\n"
        head += f"Content-Transfer-Encoding: {node.encoding}\r\n\r\n"
        return head.encode() + _encoded(octets, node.encoding)
    head = b"Content-Type: " + node.media_type.encode() + b"\r\nContent-Disposition: " + node.disposition.encode()
    head += b"; " + _name(node) + CRLF
    if node.content_id:
        head += b"Content-ID: <" + node.content_id.encode() + b">\r\n"
    encoding = "base64" if node.encoding == "base64-long" else node.encoding
    return (
        head + b"Content-Transfer-Encoding: " + encoding.encode() + CRLF + CRLF + _encoded(node.octets, node.encoding)
    )


def _name(file: File) -> bytes:
    if file.name_style == "rfc2231":
        return b"filename*=utf-8''" + quote(file.name, safe="").encode()
    if file.name_style == "rfc2231-sections":
        octets = file.name.encode()
        cuts = [octets[start : start + 7] for start in range(0, len(octets), 7)]
        return b";\r\n ".join(
            b"filename*%d*=%s%s" % (number, b"utf-8''" if number == 0 else b"", quote(cut, safe="").encode())
            for number, cut in enumerate(cuts)
        )
    if file.name_style == "rfc2047":
        return b'filename="' + base64_word(file.name) + b'"'
    return b'filename="' + file.name.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'


def base64_word(text: str) -> bytes:
    """One encoded word, however long."""
    return b"=?utf-8?B?" + base64.b64encode(text.encode()) + b"?="


def _encoded(octets: bytes, encoding: str) -> bytes:
    if encoding == "base64":
        return base64.encodebytes(octets).replace(b"\n", CRLF)
    if encoding == "base64-long":
        return base64.b64encode(octets)
    if encoding == "quoted-printable":
        if CRLF in octets and not set(octets.replace(CRLF, b"")) & set(CRLF):
            return quopri.encodestring(octets.replace(CRLF, b"\n")).replace(b"\n", CRLF)
        # Octets that aren't lines: every line end is part of the content, so it is written as an escape.
        return b"=\r\n".join(
            b"".join(b"=%02X" % octet for octet in octets[start : start + 20]) for start in range(0, len(octets), 20)
        )
    return octets
