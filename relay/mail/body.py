"""From the tree of parts to what is stored: the text, the HTML, and the attachments.

Each part yields pieces, in the order in which a reader sees them (RFC 2046 section 5.1.3). A piece has a plain form, an
HTML form, or both; at the end all pieces are put together in each form that any of them has.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from relay.core.frozen import frozen, new_tuple
from relay.core.records import StoredAttachment
from relay.mail import (
    charset,
    description,
    encoded_word,
    filename,
    flowed,
    header_block,
    html_charset,
    html_joining,
    html_text,
    transfer_encoding,
)
from relay.mail.message import Fault, Limits, Unusable
from relay.mail.part import Part

_MESSAGE_TYPES = frozenset(("message/rfc822", "message/global", "message/news"))
#: Octets of an encoded message that are decoded to find its subject.
_HEAD_OCTETS = 65_536
#: Forms of parts that are shown whatever stands beside them.
_SHOWN = frozenset(("plain", "html"))
_CARRIAGE_RETURNS = re.compile(r"\r+\n?")


@frozen
class Content:
    """What a message says and carries. `text` and `html` have LF line ends."""

    text: str
    html: str
    attachments: tuple[StoredAttachment, ...]
    #: Parts that are in no form of it: AMP for Email beside other forms.
    dropped_parts: int = 0


class _Piece(NamedTuple):
    """What a reader sees at one place of a message, in its forms; None where there is no such form.

    A form is made of texts. In the HTML form each comes with whether it is HTML.
    """

    plain: tuple[str, ...] | None
    html: tuple[tuple[str, bool], ...] | None
    #: Whether the plain form is text of a kind that has no separate form, such as Markdown.
    is_makeshift: bool = False


def read(raw: bytes, root: Part, limits: Limits) -> Content:
    """The content of the message whose parts are `root`. Raises Unusable where the attachments, and what is made of one
    form for the other, are too large together."""
    return _texts_alone(raw, root) or _BodyReader(raw, root, limits).read()


def _texts_alone(raw: bytes, root: Part) -> Content | None:
    """The content of a message that is one text, or alternatives each of which is one; None of any other."""
    # perf: most mails are so, and need no walk: 1 µs less of 20 for the smallest of the benchmark: python -m
    # scripts.benchmark.parsing --before COMMIT
    leaves = root.children
    if not leaves:
        leaves = [root]
    elif root.about.content_type.value != "multipart/alternative":
        return None
    for leaf in leaves:
        if leaf.children or leaf.about.form not in _SHOWN:
            return None
    plain = html = ""
    for leaf in leaves:
        text = _text(raw, leaf)
        if not text or text.isspace():
            continue
        if leaf.about.form == "html":
            html = text
        else:
            plain = text
    # perf: 0.2 µs, by names 0.4 µs: python -m timeit -s "from relay.mail.body import Content" "Content('', '', ())"
    return Content(plain, html, ())


class _BodyReader:
    """One walk over one tree."""

    def __init__(self, raw: bytes, root: Part, limits: Limits) -> None:
        self._raw = raw
        self._root = root
        self._left = limits.max_attachment_octets
        self._attached: list[Part] = []
        self._dropped = 0
        #: Whether no text was met yet in what is read for itself: the message, or a child of an alternative.
        self._is_first = True
        #: What may be its text if it turns out to have no other.
        self._makeshift: list[Part] = []

    def read(self) -> Content:
        """The content of the whole tree."""
        text, html = self._forms(self._read_for_itself(self._root))
        attachments = tuple([self._attachment(part) for part in self._attached])
        return Content(text=text, html=html, attachments=attachments, dropped_parts=self._dropped)

    def _read_for_itself(self, part: Part) -> list[_Piece]:
        """The pieces of a part whose text may be of any kind if it is the only one in it."""
        outer = self._is_first, self._makeshift
        self._is_first, self._makeshift = True, []
        pieces = self._pieces(part, is_body=True)
        for leaf in () if pieces else self._makeshift:
            text = _text(self._raw, leaf)
            if text and not text.isspace():
                pieces = [_Piece((text,), None, True)]
                self._attached = [each for each in self._attached if each is not leaf]
                break
        self._is_first, self._makeshift = outer
        return pieces

    def _pieces(self, part: Part, *, is_body: bool) -> list[_Piece]:
        """The pieces of a part; `is_body` where it is text whatever its name: the message, the root of a related, a
        child of an alternative.
        """
        if not part.children:
            return self._leaf(part, is_body)
        kind = part.about.content_type.value
        if kind == "multipart/alternative":
            return self._alternative(part)
        if kind in ("multipart/related", "multipart/signed"):
            return self._one_of(part, _root(part) if kind == "multipart/related" else part.children[0], is_body)
        pieces: list[_Piece] = []
        for child in part.children:
            pieces += self._pieces(child, is_body=False)
        return pieces

    def _leaf(self, part: Part, is_body: bool) -> list[_Piece]:
        form, name = part.about.form, part.about.filename
        if not form or (name and not is_body and not self._is_first) or (form == "text" and not is_body):
            if form == "text":
                self._makeshift.append(part)
            self._attached.append(part)
            return []
        text = _text(self._raw, part)
        if not text or text.isspace():
            if name and not is_body:
                self._attached.append(part)
            return []
        self._is_first = False
        forms = (None, ((text, True),), False) if form == "html" else ((text,), None, form == "text")
        return [new_tuple(_Piece, forms)]

    def _alternative(self, part: Part) -> list[_Piece]:
        """One piece: the plain form of the last child that is all plain, and the HTML of the last that has any."""
        plain: tuple[str, ...] | None = None
        makeshift: tuple[str, ...] | None = None
        html: tuple[tuple[str, bool], ...] | None = None
        for child in part.children:
            about = child.about
            if about.form in _SHOWN and not child.children:
                # perf: nearly every child is one text; a fifth of the time of the smallest: python -m timeit -s "from
                # relay.mail import parse; raw = b'From: a@b.example\r\nContent-Type: multipart/alternative; boundary=b
                # \r\n\r\n--b\r\n\r\nx\r\n--b\r\nContent-Type: text/html\r\n\r\ny\r\n--b--\r\n'" "parse(raw)"
                text = _text(self._raw, child)
                if not text or text.isspace():
                    continue
                if about.form == "html":
                    html = ((text, True),)
                else:
                    plain = (text,)
                continue
            if about.content_type.value == description.AMP and not about.is_attachment and len(part.children) > 1:
                self._dropped += 1
                continue
            pieces = self._read_for_itself(child)
            if pieces and all(piece.plain is not None for piece in pieces):
                texts = tuple(text for piece in pieces for text in piece.plain or ())
                if any(piece.is_makeshift for piece in pieces):
                    makeshift = texts
                else:
                    plain = texts
            if any(piece.html is not None for piece in pieces):
                html = _as_html(pieces)
        if plain is None and html is None and makeshift is None:
            return []
        self._is_first = False
        is_makeshift = plain is None and html is None
        return [new_tuple(_Piece, (makeshift if plain is None else plain, html, is_makeshift))]

    def _one_of(self, part: Part, chosen: Part, is_body: bool) -> list[_Piece]:
        """The pieces of one child; the others are attached, whatever they are."""
        pieces: list[_Piece] = []
        for child in part.children:
            if child is chosen:
                pieces = self._pieces(child, is_body=is_body or part.media_type == "multipart/related")
            else:
                self._attached += _leaves(child)
        return pieces

    def _forms(self, pieces: list[_Piece]) -> tuple[str, str]:
        """The whole message as text and as HTML, each empty where no piece has that form."""
        if not pieces:
            return "", ""
        plain, html, _ = pieces[0]
        if len(pieces) > 1:
            has_plain = any(piece.plain is not None for piece in pieces)
            html = _as_html(pieces) if any(piece.html is not None for piece in pieces) else None
            plain = self._as_text(pieces, reduce=html is not None) if has_plain else None
        text = "" if plain is None else plain[0] if len(plain) == 1 else "\n".join(plain)
        if html is None:
            return text, ""
        return text, html[0][0] if len(html) == 1 else self._joined(html)

    def _as_text(self, pieces: list[_Piece], *, reduce: bool) -> tuple[str, ...]:
        texts: list[str] = []
        for piece in pieces:
            if piece.plain is not None:
                texts += piece.plain
            elif reduce:
                texts += [self._reduced(text) if is_html else text for text, is_html in piece.html or ()]
        return tuple(filter(None, texts))

    def _joined(self, html: tuple[tuple[str, bool], ...]) -> str:
        # A byte order mark is one only at the start.
        pieces = [(text.removeprefix("\ufeff"), is_html) for text, is_html in html]
        return html_joining.join([text if is_html else self._escaped(text) for text, is_html in pieces])

    def _escaped(self, text: str) -> str:
        text = text.removesuffix("\n")
        # Before it is made: it may be six times as long.
        self._require(html_text.escaped_size(text))
        html = html_text.escaped(text)
        self._take(len(html))
        return html

    def _reduced(self, html: str) -> str:
        text = html_text.reduced(html.removeprefix("\ufeff"))
        self._take(len(text))
        return text

    def _take(self, size: int) -> None:
        """Counts what is stored besides the bodies as the client sent them."""
        self._require(size)
        self._left -= size

    def _require(self, size: int) -> None:
        if size > self._left:
            raise Unusable(Fault.ATTACHMENTS_TOO_LARGE, "attachments are too large")

    def _attachment(self, part: Part) -> StoredAttachment:
        about = part.about
        encoding = about.encoding
        size = part.end - part.body
        # Base64 loses its line ends, at most one in four octets; anything else grows, and quoted-printable shrinks to a
        # third before.
        least = size // 3 if encoding == "base64" else transfer_encoding.encoded_size(0 if encoding else size)
        self._require(least)
        content = transfer_encoding.to_base64(self._raw, part.body, part.end, encoding)
        self._take(len(content))
        content_id = about.content_id
        name = about.filename
        if name and not about.has_ascii_fields and (label := self._root.declared_charset):
            name = description.filename_in(about, label)
        return StoredAttachment(
            filename=name or self._unnamed(part, encoding, content_id),
            content=content,
            content_type=about.stored_type,
            content_id=content_id,
        )

    def _unnamed(self, part: Part, encoding: str, content_id: str | None) -> str:
        if part.media_type in _MESSAGE_TYPES:
            return filename.for_message(self._subject(part, encoding))
        name = ""
        if encoding == "uuencode":
            octets = self._raw[part.body : min(part.end, part.body + _HEAD_OCTETS)]
            name = filename.clean(charset.decode_view(transfer_encoding.uuencoded_name(octets)))
        return name or filename.clean(content_id or "") or filename.for_type(part.media_type)

    def _subject(self, part: Part, encoding: str) -> str:
        if not encoding:
            head, _ = header_block.read(self._raw, part.body, part.end)
        else:
            octets = transfer_encoding.decode(self._raw[part.body : min(part.end, part.body + _HEAD_OCTETS)], encoding)
            head, _ = header_block.read(octets, 0, len(octets))
        return encoded_word.decode(head.first("subject"))


def _text(raw: bytes, part: Part) -> str:
    """The text of one part, with LF line ends."""
    about = part.about
    encoding, label = about.encoding, about.charset_label
    octets = raw[part.body : part.end]
    # Before decoding it is cheaper; where a character may be a CR and an LF side by side it would be wrong.
    if about.has_ascii_lines and encoding in ("", "quoted-printable"):
        octets = transfer_encoding.lf_lines(octets)
    if encoding:
        octets = transfer_encoding.decode(octets, encoding)
    if about.form == "html" and not octets.isascii() and not charset.is_said(label):
        label = html_charset.find(octets) or label
    text = charset.decode(octets, label)
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        if "\r" in text:
            text = _CARRIAGE_RETURNS.sub(_line_ends, text.removesuffix("\r"))
    texts = about.content_type.texts
    if "format" in texts and part.media_type == "text/plain" and texts["format"].strip().lower() == "flowed":
        return flowed.join(text, delete_space=texts.get("delsp", "").strip().lower() == "yes")
    return text


def _as_html(pieces: list[_Piece]) -> tuple[tuple[str, bool], ...]:
    found: list[tuple[str, bool]] = []
    for piece in pieces:
        found += [(text, False) for text in piece.plain or ()] if piece.html is None else piece.html
    return tuple(found)


def _line_ends(match: re.Match[str]) -> str:
    """What CRs stand for: with an LF behind them one line end, without it one each."""
    return "\n" if match[0].endswith("\n") else "\n" * len(match[0])


def _root(part: Part) -> Part:
    """The child of a related that is shown (RFC 2387 section 3.2): the one that `start` names, or else the first that
    has text.
    """
    start = part.about.content_type.texts.get("start", "").strip(" <>")
    named = [child for child in part.children if start and child.about.content_id == start]
    return next(filter(_has_text, [*named, *part.children]), part.children[0])


def _has_text(part: Part) -> bool:
    return any(leaf.about.form for leaf in _leaves(part))


def _leaves(part: Part) -> list[Part]:
    return [leaf for child in part.children for leaf in _leaves(child)] if part.children else [part]
