"""What makes two messages one: the user, the Message-ID and the content, all three, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.redis.claims import key_of

words = st.text(alphabet="ab:\0", max_size=3)
contents = st.binary(max_size=2)


@given(words, words, contents, words, words, contents)
def test_messages_share_a_key_exactly_when_all_three_are_the_same(
    user: str, message_id: str, content: bytes, other_user: str, other_message_id: str, other_content: bytes
) -> None:
    same = (user, message_id, content) == (other_user, other_message_id, other_content)
    assert (key_of(user, message_id, content) == key_of(other_user, other_message_id, other_content)) == same


def test_each_division_of_the_same_octets_has_a_key_of_its_own() -> None:
    text = "ab:cd12"
    divisions = [(text[:one], text[one:two], text[two:].encode()) for one in range(8) for two in range(one, 8)]
    assert len({key_of(*division) for division in divisions}) == len(divisions)


@given(st.integers(0, 300_000))
def test_every_octet_of_the_content_counts(position: int) -> None:
    content = bytearray(300_001)
    key = key_of("user", "<id>", bytes(content))
    content[position] = 1
    assert key_of("user", "<id>", bytes(content)) != key
