"""Where a quoted string ends, and what it says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.mail import quoted_string


def _closing_quote(text: str, position: int) -> int:
    """Character by character."""
    escaped = False
    for offset in range(position, len(text)):
        if text[offset] == '"' and not escaped:
            return offset
        escaped = text[offset] == "\\" and not escaped
    return len(text)


@given(st.text(st.sampled_from('"\\ab\n\xff'), max_size=30), st.sampled_from([0, 1, 499, 999, 1000, 1001, 2500]))
def test_a_quoted_string_ends_where_its_characters_say(text: str, pairs: int) -> None:
    text = '\\"' * pairs + text
    stop = _closing_quote(text, 0)
    assert quoted_string.closing_quote(text, 0) == stop
    assert quoted_string.is_whole(f'"{text}"') == (_closing_quote(f'{text}"', 0) == len(text))
    assert quoted_string.is_whole(f'"{text}') == (bool(text) and stop == len(text) - 1)


def test_each_pair_says_its_second_character() -> None:
    assert quoted_string.unescaped('a\\"b\\\\c\\d\\\n') == 'a"b\\cd\n'
    assert quoted_string.unescaped("plain") == "plain"
