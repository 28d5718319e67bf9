"""Address lists in header fields (RFC 5322 section 3.4), well-formed or not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from relay.core.address import MAX_ADDRESS_LENGTH, BadAddress, normalise, normalise_domain
from relay.mail import charset, encoded_word, flanker_address

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = "[A-Za-z0-9][A-Za-z0-9-]*+"
#: A local part that begins with an apostrophe is an address in single quotes.
_ADDR_SPEC = rf"(?!')([{_ATEXT}]++(?:\.[{_ATEXT}]++)*+)@({_LABEL}(?:\.{_LABEL})*+\.?)"
_ELEMENT = re.compile(
    rf'[ \t]*+(?:(?:"([^"\\]*+)"[ \t]*+|([{_ATEXT} \t.]*+))<{_ADDR_SPEC}>|{_ADDR_SPEC})[ \t]*+(?:[,;][ \t]*+|\Z)'
)
#: Words, quotes, brackets and separators of one field that the tolerant reading takes; plain mailboxes don't count.
_MAX_TOKENS = 20_000
#: Mailboxes of one field that are taken; no setting lets a message have so many recipients.
_MAX_MAILBOXES = 50_000

#: Addresses that are looked for in a field that nobody can read with certainty.
_MAX_LOOKALIKES = 1000

#: An encoded word is one word, whatever specials were left in it.
_ENCODED_WORD = re.compile(r"=\?[^?\s]{1,60}\?[bBqQ]\?[^?]{0,500}\?=", re.ASCII)
_RUN = re.compile(r'[^"(),:;<>\\\s\x00-\x1f]++', re.ASCII)
_QUOTED = re.compile(r'(?:[^"\\]|\\.)*+', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
#: The whole address in quotes, where only its local part may be.
_QUOTED_ADDRESS = re.compile(r'"[^"\\@\s<>]++@[^"\\@\s<>]++"\Z', re.ASCII)
_COMMENT_MARK = re.compile(r"\\.|[()]", re.DOTALL)
_IN_ANGLES = re.compile(r'\s*"(?:[^"\\]|\\.)*+"[^<>"]*+|[^<>]*+', re.DOTALL | re.ASCII)
_COMMENT = re.compile(r"\([^()]*+\)")
_SPACES = re.compile(r"[\s\x00-\x1f]+", re.ASCII)
_NOT_IN_ADDRESS = re.compile(r"[\s<>()\"',:;\\\[\]]+", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9\x80-\xff][A-Za-z0-9._\x80-\xff-]*+\Z")
_BRACKET = re.compile(r"[<>()\[\]]")
_INSIDE = re.compile(
    rf"(?<![{_ATEXT}.\x80-\xff])([{_ATEXT}.\x80-\xff]++)@([A-Za-z0-9\x80-\xff](?:[A-Za-z0-9._\x80-\xff-]*[A-Za-z0-9\x80-\xff])?)"
)
_PLAIN_NAME = re.compile(rf"[{_ATEXT} ]+\Z")
_NAME_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Mailbox(NamedTuple):
    """One mailbox as written: all three are latin-1 views of octets, without quotes and escapes."""

    name: str
    local: str
    domain: str


@dataclass(slots=True)
class MailboxList:
    """What one field holds. `doubtful` tells that another reader might take other addresses from it."""

    mailboxes: list[Mailbox] = field(default_factory=list)
    doubtful: bool = False


def parse(view: str, *, shortcuts: bool = True) -> MailboxList:
    """The mailboxes in a field's latin-1 view: members of groups included, comments and routes stripped. Never raises.

    Lists of plain mailboxes take a strict expression, others flanker's grammar, and what that refuses the tolerant
    reading below.
    `shortcuts=False` leaves out the first, for the tests that compare the ways. Linear in the length of `view`.
    """
    view = _spaced(view)
    if shortcuts:
        found = MailboxList()
        if _plain(view, 0, found) == len(view) or len(found.mailboxes) == _MAX_MAILBOXES:
            return found
    by_grammar = flanker_address.parse(view)
    if by_grammar is not None:
        return MailboxList([Mailbox(*each) for each in by_grammar])
    return _Tolerant(view, shortcuts=shortcuts).read()


def _plain(view: str, position: int, found: MailboxList) -> int:
    """Takes mailboxes that leave no doubt from `position` on; the offset where the first that does begins."""
    while position < len(view) and len(found.mailboxes) < _MAX_MAILBOXES:
        match = _ELEMENT.match(view, position)
        if match is None:
            break
        quoted, plain, local, domain, bare_local, bare_domain = match.groups()
        if local is None:
            mailbox = Mailbox("", bare_local, bare_domain)
        else:
            mailbox = Mailbox(plain.rstrip() if quoted is None else quoted, local, domain)
        if "=?" in match[0] and _cut_word(mailbox):
            break
        found.mailboxes.append(mailbox)
        position = match.end()
    return position


def sole_address(view: str) -> str | None:
    """The stored form of the only mailbox in a field's latin-1 view; None where it leaves any doubt.

    That is what `parse` and `addresses` find too, in a quarter of the time: most fields hold one plain address.
    """
    match = _ELEMENT.match(view)
    if match is None or match.end() < len(view) or "=?" in view:
        return None
    _, _, local, domain, bare_local, bare_domain = match.groups()
    try:
        address = f"{local or bare_local}@{normalise_domain(domain or bare_domain)}"
    except BadAddress:
        return None
    return address if len(address) <= MAX_ADDRESS_LENGTH else None


def addresses(mailboxes: list[Mailbox], *, allow_utf8_local_parts: bool) -> tuple[str, ...]:
    """The stored form of each mailbox, each once. One that can't be sent to is left out.

    Raises BadAddress for a local part that isn't ASCII, unless they are allowed.
    """
    found: dict[str, str] = {}
    for mailbox in mailboxes:
        try:
            address = address_of(mailbox, allow_utf8_local_parts=allow_utf8_local_parts)
        except BadAddress as error:
            if error.utf8_local_part:
                raise
            continue
        found.setdefault(address.lower(), address)
    return tuple(found.values())


def address_of(mailbox: Mailbox, *, allow_utf8_local_parts: bool) -> str:
    """The stored form of one mailbox. Raises BadAddress."""
    local = charset.decode_view(mailbox.local)
    domain = charset.decode_view(mailbox.domain)
    return normalise(local, domain, allow_utf8_local_part=allow_utf8_local_parts)


def lookalikes(view: str) -> list[Mailbox]:
    """Every stretch of a field that some reader might take for an address, wherever it stands; the first thousand."""
    found: list[Mailbox] = []
    for stretch in _NOT_IN_ADDRESS.split(_spaced(view)):
        if len(found) >= _MAX_LOOKALIKES:
            break
        pieces = stretch.split("@")
        found += [Mailbox("", local, domain) for local, domain in pairwise(pieces) if local and domain]
    return found[:_MAX_LOOKALIKES]


def with_name(name_view: str, address: str) -> str:
    """`Name <address>` for emails."from": ASCII, at most 512 characters; the name is shortened, not the address."""
    name = " ".join(_NAME_CONTROLS.sub(" ", encoded_word.decode(name_view)).split())
    while name and name != address:
        if not name.isascii() or "=?" in name:
            phrase = encoded_word.encode_whole(name)
        elif _PLAIN_NAME.match(name):
            phrase = name
        else:
            phrase = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        sender = f"{phrase} <{address}>"
        if len(sender) <= MAX_ADDRESS_LENGTH:
            return sender
        name = name[: min(len(name) * 3 // 4, 400)].rstrip()
    return address


def _spaced(view: str) -> str:
    """A view with spaces for no-break spaces, which otherwise would be part of names and addresses. Offsets stay.

    A single octet A0 is one where nothing says that it belongs to another charset.
    """
    if "\xa0" not in view:
        return view
    view = view.replace("\xc2\xa0", "  ")
    if "=?" in view:
        return view
    try:
        view.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return view.replace("\xa0", " ")
    return view


def _cut_word(mailbox: Mailbox) -> bool:
    """Whether specials inside an encoded word were taken for those of the list."""
    rest = _ENCODED_WORD.sub("", mailbox.name)
    return "=?" in mailbox.local or "=?" in rest or "?=" in rest


class _Tolerant:
    """One reading of one field that no grammar accepts."""

    def __init__(self, view: str, *, shortcuts: bool) -> None:
        self._view = view
        self._shortcuts = shortcuts
        self._list = MailboxList()
        self._tokens: list[tuple[str, str]] = []
        self._name_before = ""
        self._quotes = True

    def read(self) -> MailboxList:
        """All mailboxes of the field."""
        view, tokens = self._view, self._tokens
        position, size = 0, len(view)
        for _ in range(_MAX_TOKENS):
            if self._shortcuts and not tokens and not self._name_before:
                position = _plain(view, position, self._list)
            if position >= size:
                break
            character = view[position]
            word = _ENCODED_WORD.match(view, position) if character == "=" else None
            run = word or _RUN.match(view, position)
            if run:
                self._list.doubtful |= word is not None
                tokens.append(("word", run[0]))
                position = run.end()
            elif character == '"':
                position = self._quoted(position)
            elif character == "(":
                position = self._comment(position)
            elif character == "<":
                position = self._angle(position)
            else:
                if character in ",;":
                    self._element()
                elif character == ":":
                    # A group's name; its members follow as if they stood alone.
                    self._list.doubtful |= any("@" in text for _, text in tokens)
                    tokens.clear()
                    self._name_before = ""
                else:
                    self._list.doubtful |= not character.isspace()
                    tokens.append(("space", " "))
                position += 1
        else:
            self._list.doubtful = True
        self._element()
        return self._list

    def _quoted(self, position: int) -> int:
        inner = _QUOTED.match(self._view, position + 1) if self._quotes else None
        if inner is None or inner.end() >= len(self._view):
            self._quotes = False
            self._list.doubtful = True
            return position + 1
        self._tokens.append(("quoted", _ESCAPED.sub(r"\1", inner[0])))
        return inner.end() + 1

    def _comment(self, position: int) -> int:
        depth = 0
        for mark in _COMMENT_MARK.finditer(self._view, position):
            depth += {"(": 1, ")": -1}.get(mark[0], 0)
            if depth == 0:
                self._tokens.append(("comment", _ESCAPED.sub(r"\1", self._view[position + 1 : mark.start()])))
                return mark.end()
        # Not closed: all of the rest is a comment.
        self._list.doubtful = True
        return len(self._view)

    def _angle(self, position: int) -> int:
        content = _IN_ANGLES.match(self._view, position + 1)
        stop = content.end() if content else position + 1
        text = self._view[position + 1 : stop]
        if self._view.startswith(">", stop):
            self._tokens.append(("angle", text))
            return stop + 1
        # Not closed: it goes on to the next separator.
        self._list.doubtful = True
        text = re.split("[,;]", text, maxsplit=1)[0]
        self._tokens.append(("angle", text))
        return position + 1 + len(text)

    def _element(self) -> None:
        """Takes the mailboxes out of the tokens since the last separator."""
        tokens = self._tokens
        if not tokens:
            return
        found = self._from_angles(tokens) or self._from_words(tokens)
        name = ""
        for kind, text, spaced in _glued(tokens):
            if kind == "quoted" or (kind == "word" and ("@" not in text or text.startswith("=?"))):
                name += f" {text}" if spaced and name else text
        comment = next((text for kind, text in tokens if kind == "comment"), "")
        tokens.clear()
        if found:
            # A comma in an unquoted name cut it in two.
            name = f"{self._name_before}, {name}" if self._name_before and name else name
            self._list.mailboxes.append(Mailbox(name or comment.strip(" \t"), found.local, found.domain))
            name = ""
        self._name_before = name

    def _from_angles(self, tokens: list[tuple[str, str]]) -> Mailbox | None:
        angles = [text for kind, text in tokens if kind == "angle"]
        found = [mailbox for mailbox in map(_addr_spec, angles) if mailbox]
        self._list.doubtful |= len(angles) != len(found) or len(found) > 1
        self._list.doubtful |= bool(angles) and any(kind == "word" and "@" in text for kind, text in tokens)
        return found[0] if found else None

    def _from_words(self, tokens: list[tuple[str, str]]) -> Mailbox | None:
        glued = _glued(tokens)
        self._list.doubtful |= len(glued) > 1
        joined = _without_blanks_before_dots(glued)
        for kind, text in joined:
            found = _addr_spec(text) if kind == "word" and "@" in text else None
            if found:
                return found
        quoted = [text for kind, text in joined if kind == "quoted" and "@" in text and not _SPACES.search(text)]
        self._list.doubtful |= any("@" in text for _, text in tokens)
        return _addr_spec(quoted[0]) if quoted else None


def _glued(tokens: list[tuple[str, str]]) -> list[tuple[str, str, bool]]:
    """Kind, text, and whether a space stood before, of the words, quoted strings and angles among the tokens.

    Words are put together around `@`, a quoted local part with its domain.
    """
    glued: list[tuple[str, str, bool]] = []
    spaced = False
    before_kind = ""
    for kind, text in tokens:
        before_comment, before_kind = before_kind == "comment", kind
        if kind in ("space", "comment"):
            spaced = True
            continue
        if glued and kind == "word" and glued[-1][0] != "angle":
            before, previous, gap = glued[-1]
            if text.startswith("@") and "@" not in previous.partition('"@')[0]:
                if before == "quoted":
                    previous = '"' + previous.replace("\\", "\\\\").replace('"', '\\"') + '"'
                glued[-1] = ("word", previous + text, gap)
                continue
            # A comment may stand beside every full stop of a domain.
            dotted = before_comment and "@" in previous and (text.startswith(".") or previous.endswith("."))
            if before == "word" and (previous.endswith("@") or dotted):
                glued[-1] = ("word", previous + text, gap)
                continue
        glued.append((kind, text, spaced))
        spaced = False
    return glued


def _without_blanks_before_dots(glued: list[tuple[str, str, bool]]) -> list[tuple[str, str]]:
    """Words put together at full stops with a blank before them (RFC 5322 section 4.4), which no sentence has."""
    joined: list[tuple[str, str]] = []
    after_lone_dot = False
    for kind, text, _ in glued:
        before_kind, before = joined[-1] if joined else ("", "")
        dotted = (text.startswith(".") or after_lone_dot) and not before.startswith(".")
        if dotted and kind == before_kind == "word":
            joined[-1] = ("word", before + text)
        else:
            joined.append((kind, text))
        after_lone_dot = kind == "word" and text == "."
    return joined


def _addr_spec(text: str) -> Mailbox | None:
    """`local@domain` in what stands between angle brackets, or alone; None where there is none."""
    text = text.strip(" \t\r\n'")
    if text.startswith(("[", "{")) and text.endswith(("]", "}")):
        text = text[1:-1]
    if "(" in text and not text.startswith('"'):
        text = _COMMENT.sub("", text)
    if text.startswith("@") and ":" in text:
        text = text.partition(":")[2]
    if text[:7].lower() == "mailto:":
        text = text[7:]
    if text.startswith('"') and text.endswith('"') and _QUOTED_ADDRESS.match(text):
        text = text[1:-1]
    if text.startswith('"'):
        inner = _QUOTED.match(text, 1)
        rest = text[inner.end() :] if inner else ""
        local, separator, domain = _ESCAPED.sub(r"\1", inner[0]) if inner else "", rest[:2], _SPACES.sub("", rest[2:])
        if separator != '"@':
            return None
    else:
        local, at, domain = _SPACES.sub("", text).partition("@")
        if not at:
            return None
    domain = domain.rstrip(".'")
    if not local or not domain or "@" in domain or ("=?" in text and "?=" in text):
        return None
    if not text.startswith('"') and (not _HOST.match(domain) or _BRACKET.search(local)):
        # Brackets or punctuation around an address, which are no part of it.
        inside = _INSIDE.search(f"{local}@{domain}")
        return Mailbox("", inside[1], inside[2]) if inside else None
    return Mailbox("", local, domain)
