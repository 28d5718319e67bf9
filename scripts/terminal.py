"""Text from outside on a terminal: characters that a terminal acts upon are shown, not sent."""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/dev, and no command.")


def printable(text: str) -> str:
    """The text with each character that is not visible as an escape: controls, line ends, marks of direction."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode("ascii") for each in text
    )
