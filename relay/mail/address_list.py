"""Address lists that no grammar accepts, read as their writers meant them (RFC 5322 sections 3.4 and 4.4)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, TypeAlias

from relay.mail import address_spec, quoted_string
from relay.mail.address_spec import AddrSpec

#: Words, brackets and separators of one field that are looked at.
MAX_STEPS: Final = 400_000
#: Lists in quotes in lists.
_DEPTH: Final = 3

_ENCODED_WORD = r"=\?[^?\s]{1,60}\?[bBqQ]\?[^?]*+\?="
_SPECIALS = r'\s"(),:;<>'
#: What stands together without a blank, apart from what is in quotes, some pieces at a time: the engine remembers each
#: piece until the match is done. An encoded word is part of it whatever specials were left in it, and so is a domain
#: literal.
_PIECES: Final = re.compile(
    rf"(?:[^{_SPECIALS}=\[mM]++|{_ENCODED_WORD}|(?<=@)\[[^\[\]\s]{{0,200}}\]|(?i:mailto:)|[^{_SPECIALS}]){{1,100}}"
)
_ENCODED_WORD_OR_QUOTE: Final = re.compile(rf'{_ENCODED_WORD}|"')
_COMMENT_MARK: Final = re.compile(r"\\.|[()]", re.DOTALL)
_COMMENT_MARK_OR_QUOTE: Final = re.compile(r"\\.|[()\"]", re.DOTALL)
_OPENING_QUOTE: Final = re.compile(r'\s*+"')
_TO_ANGLE: Final = re.compile(r"[^<>]*+")
_TO_ANGLE_OR_QUOTE: Final = re.compile(r'[^<>"]*+')
_SEPARATOR: Final = re.compile(r"[,;]")
_SEPARATORS: Final = re.compile(r"[,;\s]++")
_BETWEEN: Final = re.compile(r'[">\s]++')
_WHITE_SPACE: Final = re.compile(r"[\t-\r]")
#: No blanks: what they stand in is no address, and neither of the two halves that they would make of it.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0e-\x1f]")
_BRACKET: Final = re.compile(r"[()\[\]{}]")
_QUOTES: Final = ("'", "`")
_COMMENTS: Final = re.compile("\0+")
#: Brackets and quotes that programs print around lists, opening and closing.
_LIST_BRACKETS: Final = {"[": "]", "{": "}", "(": ")", "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019"}


class Found(NamedTuple):
    """One mailbox: its name, without quotes and escapes, and its address."""

    name: str
    spec: AddrSpec


#: `stretch`, `blank`, `comment`, `angle` or `half` (an angle that nothing closes), and the text: a stretch as it
#: stands, the others without their brackets.
_Item: TypeAlias = tuple[str, str]


class AddressList:
    """One reading of one field, or of what a program printed as an element of it.

    An element that is no address whole gives none, and is counted in `left_out`. `doubtful`: another reader
    might find other addresses; `cut` that not all was looked at.
    """

    def __init__(self, text: str, depth: int = 0) -> None:
        self.found: list[Found] = []
        self.left_out = 0
        self.doubtful = depth > 0
        self.cut = False
        text = _CONTROLS.sub(address_spec.CONTROL, _WHITE_SPACE.sub(" ", text))
        self._text = _without_list_brackets(text)
        self._position = 0
        self._depth = depth
        self._items: list[_Item] = []
        #: Names between commas that an angle may still follow.
        self._names_before: list[str] = []
        #: Whether there may be a quote that something closes.
        self._quotes = True

    def read(self) -> None:
        """Reads the field, up to what is too much."""
        for _ in range(MAX_STEPS):
            if not self._step():
                break
        else:
            self.cut = self._position < len(self._text)
        self._element()
        self._drop_names()

    def _step(self) -> bool:
        """Reads the next word, bracket or separator; False at the end."""
        text, position = self._text, self._position
        if position >= len(text):
            return False
        self._position = self._end_of_stretch(position)
        if self._position > position:
            self._items.append(("stretch", text[position : self._position]))
            return True
        character = text[position]
        if character == "<":
            self._angle(position)
        elif character == "(":
            self._comment(position)
        elif character in ",;":
            self._position = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr]
            self._element()
        elif character == ":":
            self._position += 1
            self._group()
        else:
            between = _BETWEEN.match(text, position)
            self._position = between.end() if between else position + 1
            blanks = text[position : self._position]
            if not blanks.isspace():
                self.doubtful = True
                if '"' in blanks:
                    # Nothing closes it, nor any later one.
                    self._quotes = False
            if self._items:
                self._items.append(("blank", " " if blanks.isspace() else " > "))
        return True

    def _end_of_stretch(self, position: int) -> int:
        text = self._text
        while True:
            pieces = _PIECES.match(text, position)
            if pieces:
                position = pieces.end()
            elif self._quotes and text.startswith('"', position):
                closing = quoted_string.closing_quote(text, position + 1)
                if closing == len(text):
                    return position
                position = closing + 1
            else:
                return position

    def _comment(self, position: int) -> None:
        depth = 0
        for mark in _COMMENT_MARK.finditer(self._text, position):
            depth += {"(": 1, ")": -1}.get(mark[0], 0)
            if depth == 0:
                self._items.append(("comment", self._text[position + 1 : mark.start()]))
                self._position = mark.end()
                return
        # Not closed: all of the rest is a comment.
        self._items.append(("comment", self._text[position + 1 :]))
        self._position = len(self._text)
        self.doubtful = True

    def _angle(self, position: int) -> None:
        stop = _end_of_angle(self._text, position + 1)
        if self._text.startswith(">", stop):
            self._items.append(("angle", self._text[position + 1 : stop]))
            self._position = stop + 1
            return
        # Not closed: it goes on to the next separator.
        self.doubtful = True
        separator = _SEPARATOR.search(self._text, position + 1, stop)
        self._position = separator.start() if separator else stop
        self._items.append(("half", self._text[position + 1 : self._position]))

    def _group(self) -> None:
        """A group's name; its members follow as if they stood alone."""
        if any("@" in text for kind, text in self._items if kind != "comment"):
            self.doubtful = True
            self.left_out += 1
        self._items.clear()
        self._names_before.clear()

    def _element(self) -> None:
        """Takes the mailboxes out of what was read since the last separator."""
        items, self._items = self._items, []
        if any(kind in ("angle", "half") for kind, _ in items):
            self._from_angles(items)
        elif any("@" in text for kind, text in items if kind == "stretch"):
            self._from_words(items)
        elif any(kind == "stretch" for kind, _ in items):
            self._names_before += filter(None, [_name(items)])
        elif any("@" in text for _, text in items):
            self._from_comments(items)

    def _from_angles(self, items: list[_Item]) -> None:
        """An element with angle brackets: nothing else in it is ever an address."""
        names, self._names_before = self._names_before, []
        found: list[Found] = []
        words: list[_Item] = []
        for kind, text in items:
            if kind not in ("angle", "half"):
                words.append((kind, text))
                continue
            specs = _in_angles(text)
            if specs:
                name = _name(words)
                if not found and names and name not in names:
                    name = ", ".join([*names, *([name] if name else [])])
                found += [Found(name, specs[0]), *(Found("", spec) for spec in specs[1:])]
                words = []
            elif kind == "angle" or text.strip():
                self.doubtful = True
        self.doubtful |= len(found) > 1
        stretches = [text for kind, text in items if kind == "stretch"]
        self.doubtful |= any("@" in text and not quoted_string.is_whole(text) for text in stretches)
        if not found:
            self.left_out += 1
            return
        name, rest = found[0].name, _name(words)
        if rest in _QUOTES and name.startswith(rest):
            # Name and address together were in quotes.
            found[0] = Found(name[1:], found[0].spec)
        elif not name:
            found[0] = Found(rest or _comment_of(items), found[0].spec)
        self.found += found

    def _from_words(self, items: list[_Item]) -> None:
        """An element without angle brackets: an address, or words of which one is."""
        self._drop_names()
        stretches = [text for kind, text in items if kind == "stretch"]
        exact = address_spec.exact(stretches[0]) if len(stretches) == 1 else None
        if exact and len(items) == 1:
            self.found.append(Found("", exact))
            return
        whole = address_spec.read(_joined(items), sentence=True)
        self.doubtful |= whole is None or exact is None
        if whole:
            self.found.append(Found(_comment_of(items), whole))
            return
        if len(stretches) == 1 and quoted_string.is_whole(stretches[0]):
            self._within(quoted_string.unescaped(stretches[0][1:-1]))
            return
        specs = {text: spec for text in stretches if (spec := address_spec.read(text, sentence=True))}
        if len(specs) == len(set(stretches)):
            # A list with blanks where commas should be.
            self.found += [Found("", spec) for spec in specs.values()]
            return
        # A name in quotes is no address.
        usable = [spec for text, spec in specs.items() if not quoted_string.is_whole(text)]
        if not usable:
            self.left_out += 1
            return
        self.left_out += len(usable) - 1
        name = _name([(kind, text) for kind, text in items if text not in specs])
        self.found.append(Found(name or _comment_of(items), usable[0]))

    def _from_comments(self, items: list[_Item]) -> None:
        """Nothing but comments: what some languages print for a tuple is one."""
        for _, text in items:
            if text.lstrip()[:1] in ("'", '"'):
                self._within(text)
            elif "@" in text:
                self.left_out += 1

    def _within(self, text: str) -> None:
        """Reads a list in quotes or brackets."""
        self.doubtful = True
        if self._depth >= _DEPTH:
            self.left_out += 1
            return
        inner = AddressList(text, self._depth + 1)
        inner.read()
        self.found += inner.found
        self.left_out += inner.left_out or (not inner.found)
        self.cut |= inner.cut

    def _drop_names(self) -> None:
        """No angle came behind them: each was an element."""
        self.left_out += len(self._names_before)
        self._names_before = []


def _end_of_angle(text: str, position: int) -> int:
    """The offset of the bracket at which what begins behind an angle bracket ends: those in quotes, where quotes begin
    it, are none.
    """
    opening = _OPENING_QUOTE.match(text, position)
    if opening:
        closing = quoted_string.closing_quote(text, opening.end())
        if closing < len(text):
            return _TO_ANGLE_OR_QUOTE.match(text, closing + 1).end()  # type: ignore[union-attr]
    return _TO_ANGLE.match(text, position).end()  # type: ignore[union-attr]


def _in_angles(text: str) -> list[AddrSpec]:
    """The address between angle brackets, or all that are listed there; empty where any of it is none."""
    text = _without_comments(text).rstrip(",; ")
    spec = address_spec.read(text)
    if spec is not None:
        return [spec]
    if text.count("@") < 2 or not _SEPARATOR.search(text):
        return []
    specs = [address_spec.read(each) for each in _SEPARATOR.split(text) if each.strip()]
    return [spec for spec in specs if spec] if all(specs) else []


def _without_comments(text: str) -> str:
    """`text` without what stands in parentheses, quotes apart; as it is where they don't pair."""
    if "(" not in text:
        return text
    kept: list[str] = []
    depth = position = 0
    behind = 0
    while (mark := _COMMENT_MARK_OR_QUOTE.search(text, behind)) is not None:
        behind = mark.end()
        if mark[0] == "(":
            if not depth:
                kept.append(text[position : mark.start()])
            depth += 1
        elif mark[0] == ")":
            depth -= 1
            if depth < 0:
                return text
            position = behind
        elif mark[0] == '"':
            closing = quoted_string.closing_quote(text, behind)
            if closing < len(text):
                behind = closing + 1
    return "".join([*kept, text[position:]]) if not depth else text


def _joined(items: list[_Item]) -> str:
    """The text of an element without angle brackets. A comment is a blank, and nothing at all beside a full stop or an
    at sign.
    """
    text = _COMMENTS.sub("\0", "".join("\0" if kind == "comment" else text for kind, text in items))
    if "\0" not in text:
        return text
    for mark in ".@":
        text = text.replace(f"\0{mark}", mark).replace(f"{mark}\0", mark)
    return text.replace("\0", " ")


def _name(items: list[_Item]) -> str:
    """The words of a display name, without quotes and escapes."""
    words = (_without_quotes(text) for kind, text in items if kind == "stretch")
    return address_spec.trimmed(" ".join(words))


def _without_quotes(text: str) -> str:
    """`text` with what its quotes say in their places; a quote in an encoded word is none, nor is one that nothing
    closes.
    """
    kept: list[str] = []
    position = behind = 0
    while (mark := _ENCODED_WORD_OR_QUOTE.search(text, behind)) is not None:
        behind = mark.end()
        if mark[0] == '"':
            closing = quoted_string.closing_quote(text, behind)
            if closing == len(text):
                break
            kept += [text[position : mark.start()], quoted_string.unescaped(text[behind:closing])]
            position = behind = closing + 1
    return "".join([*kept, text[position:]])


def _comment_of(items: list[_Item]) -> str:
    """The first comment, which is the name where there is no other."""
    return next((quoted_string.unescaped(text).strip() for kind, text in items if kind == "comment"), "")


def _without_list_brackets(text: str) -> str:
    """What stands in the brackets or quotes around all of a list that a program printed."""
    for _ in range(_DEPTH):
        inside = address_spec.trimmed(text).rstrip(",; ")
        closing = _LIST_BRACKETS.get(inside[:1])
        if closing is None or len(inside) < 2 or inside[-1] != closing or not _encloses(inside, closing):
            break
        text = inside[1:-1]
    return text


def _encloses(text: str, closing: str) -> bool:
    """Whether the first character and the last are a pair, and a list stands between them."""
    opening, inner = text[0], text[1:-1]
    if opening not in "[{(":
        return closing not in inner and opening not in inner and _SEPARATOR.search(inner) is not None
    if opening == "(" and inner.lstrip()[:1] not in ("'", '"', "[", "("):
        return False
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += {opening: 1, closing: -1}.get(match[0], 0)
        if not depth:
            return match.end() == len(text)
    return False
