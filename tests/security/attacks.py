"""Inputs that make a regular expression slow, built from its own parsed parts: prefix + run + suffix.

An expression is slow where a long run can be divided between its repetitions in many ways, or tried from each of its
characters, and then fails. So the run is of anything that one of its repetitions takes, the prefix is what leads there,
and the suffix is whatever may make it fail. What the characters are is told by the expression too: of all characters
that its classes and literals treat alike one is enough.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import regex

if hasattr(re, "_parser"):
    from re import _constants as sre
    from re import _parser as sre_parser

#: A repetition of more than so many is a long one.
_LONG = 40
#: Characters of which one of each kind is taken.
_CANDIDATES = [
    *("a", " ", "0", "b", ".", "@", "=", "!"),
    *map(chr, range(256)),
    *("\u2028", "\u3002", "\ud800", "\udc80", "\u00fc"),
]
_MOST_CHARACTERS = 16
_MOST_UNITS = 70
_MOST_PREFIXES = 8


class Expression(NamedTuple):
    """One expression, as the recorder names it, and how it is used."""

    name: str
    engine: str
    octets: bool
    pattern: str
    flags: int
    longest: dict[str, int]

    def compiled(self) -> Any:
        """The expression, compiled by its own engine."""
        pattern = self.pattern.encode("latin-1") if self.octets else self.pattern
        return (regex if self.engine == "regex" else re).compile(pattern, self.flags)


def _parsed(expression: Expression) -> Any:
    flags = expression.flags if expression.engine == "re" else _as_of_re(expression.flags)
    pattern = expression.pattern.encode("latin-1") if expression.octets else expression.pattern
    return sre_parser.parse(pattern, flags & ~re.UNICODE if expression.octets else flags)


def _as_of_re(flags: int) -> int:
    """The flags of `regex` that `re` has too."""
    names = ("IGNORECASE", "MULTILINE", "DOTALL", "VERBOSE", "ASCII")
    return sum(int(getattr(re, name)) for name in names if flags & int(getattr(regex, name)))


def _repetitions() -> tuple[Any, ...]:
    return tuple(getattr(sre, name) for name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") if hasattr(sre, name))


def _parts(operator: Any, value: Any) -> Iterator[Sequence[Any]]:
    """What stands within one element of a parsed expression."""
    if operator in _repetitions():
        yield value[2]
    elif operator is sre.SUBPATTERN:
        yield value[3]
    elif operator is sre.BRANCH:
        yield from value[1]
    elif operator in (sre.ASSERT, sre.ASSERT_NOT):
        yield value[1]
    elif operator is getattr(sre, "ATOMIC_GROUP", None):
        yield value


def _classes(parsed: Sequence[Any]) -> Iterator[Any]:
    """Every literal and class of an expression."""
    for operator, value in parsed:
        if operator in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            yield (operator, value)
        for part in _parts(operator, value):
            yield from _classes(part)


def _takes(element: Any, character: str, flags: int) -> bool:
    operator, value = element
    if flags & re.IGNORECASE:
        return any(
            _takes(element, each, flags & ~re.IGNORECASE)
            for each in {character, character.lower(), character.upper()[:1]}
        )
    if operator is sre.LITERAL:
        return value == ord(character)
    if operator is sre.NOT_LITERAL:
        return value != ord(character)
    if operator is sre.ANY:
        return character != "\n" or bool(flags & re.DOTALL)
    taken = negated = False
    for kind, each in value:
        if kind is sre.NEGATE:
            negated = True
        elif kind is sre.LITERAL:
            taken |= each == ord(character)
        elif kind is sre.RANGE:
            taken |= each[0] <= ord(character) <= each[1]
        elif kind is sre.CATEGORY:
            taken |= _in_category(each, character)
    return taken != negated


def _in_category(category: Any, character: str) -> bool:
    name = str(category).rpartition("CATEGORY_")[2]
    negated = name.startswith("NOT_")
    name = name.removeprefix("NOT_")
    found = {
        "DIGIT": character.isdecimal(),
        "SPACE": character.isspace(),
        "WORD": character.isalnum() or character == "_",
    }[name]
    return found != negated


def alphabet(expression: Expression) -> list[str]:
    """One character of each kind that the expression tells apart."""
    classes = list({repr(each): each for each in _classes(_parsed(expression))}.values())
    kinds: dict[tuple[bool, ...], str] = {}
    for character in _CANDIDATES:
        if ord(character) > 255 and expression.octets:
            continue
        kinds.setdefault(tuple(_takes(each, character, expression.flags) for each in classes), character)
    return list(kinds.values())[: max(_MOST_CHARACTERS, 1)]


def _example(parsed: Sequence[Any], letters: Sequence[str], flags: int, *, repeated: int = 1) -> str:
    """The beginning of a text that these elements match, as short as may be."""
    text = ""
    for operator, value in parsed:
        if operator in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            if operator is sre.LITERAL:
                text += chr(value)
            else:
                text += next((each for each in letters if _takes((operator, value), each, flags)), "")
        elif operator in _repetitions():
            text += _example(value[2], letters, flags) * max(value[0], min(repeated, _count(value[1])))
        elif operator is sre.SUBPATTERN:
            text += _example(value[3], letters, flags)
        elif operator is sre.BRANCH:
            text += _example(value[1][0], letters, flags)
        elif operator is getattr(sre, "ATOMIC_GROUP", None):
            text += _example(value, letters, flags)
    return text


def _count(most: Any) -> int:
    return min(int(most), _LONG + 1)


def _long_repetitions(
    parsed: Sequence[Any], letters: Sequence[str], flags: int, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """For each long repetition what leads to it, what it repeats, and what would follow."""
    for index, (operator, value) in enumerate(parsed):
        rest = _example(parsed[index + 1 :], letters, flags)
        if operator in _repetitions() and _count(value[1]) > _LONG:
            unit = _example(value[2], letters, flags)
            yield prefix, unit, rest
            for part in _parts(operator, value):
                # A branch of what is repeated is a unit too.
                for inner, within in part:
                    for branch in value_branches(inner, within):
                        yield prefix, _example(branch, letters, flags), rest
        for part in _parts(operator, value):
            yield from _long_repetitions(part, letters, flags, prefix)
        prefix += _example([(operator, value)], letters, flags)


def value_branches(operator: Any, value: Any) -> Iterator[Sequence[Any]]:
    """The alternatives that one element is, groups around them opened."""
    if operator is sre.BRANCH:
        yield from value[1]
    elif operator is sre.SUBPATTERN:
        for inner, within in value[3]:
            yield from value_branches(inner, within)


class Attack(NamedTuple):
    """A text of any length that may take an expression long."""

    prefix: str
    unit: str
    suffix: str

    def text(self, size: int) -> str:
        """The attack, with a run of that many characters."""
        return self.prefix + self.unit * (size // len(self.unit) + 1) + self.suffix


def attacks(expression: Expression) -> list[Attack]:
    """All ends for all units behind all prefixes."""
    parsed, letters = _parsed(expression), alphabet(expression)
    found = list(_long_repetitions(parsed, letters, expression.flags))
    prefixes = list(
        dict.fromkeys(["", *(prefix for prefix, _, _ in found), *(f"\n{prefix}" for prefix, _, _ in found)])
    )
    whole = _example(parsed, letters, expression.flags, repeated=2)
    units = dict.fromkeys(unit for _, unit, _ in found)
    units |= dict.fromkeys(letters)
    units |= dict.fromkeys(prefix + unit for prefix, unit, _ in found)
    units |= dict.fromkeys([*prefixes, whole])
    units |= dict.fromkeys(map("".join, itertools.permutations(letters[:8], 2)))
    ends = list(dict.fromkeys(["", *letters, *(rest for _, _, rest in found), *(f"{rest}!" for _, _, rest in found)]))
    return [
        Attack(prefix, unit, end)
        for prefix in prefixes[:_MOST_PREFIXES]
        for unit in [each for each in units if each][:_MOST_UNITS]
        for end in ends
    ]


def run(compiled: Any, method: str, text: str, octets: bool) -> None:
    """Runs an expression on all of a text."""
    subject: Any = text.encode("latin-1") if octets else text
    if method in ("sub", "subn"):
        compiled.sub(b"" if octets else "", subject)
    elif method == "finditer":
        for _ in compiled.finditer(subject):
            pass
    else:
        getattr(compiled, method)(subject)
