"""What makes two messages one: the user, the Message-ID and the content, all three, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.claims import Claim

words = st.text(alphabet="ab:\0", max_size=3)
digests = st.binary(max_size=2)


@given(words, words, digests, words, words, digests)
def test_messages_share_a_key_exactly_when_all_three_are_the_same(
    user: str, message_id: str, digest: bytes, other_user: str, other_message_id: str, other_digest: bytes
) -> None:
    one = Claim.of(user, message_id, digest, "id-1", 60)
    two = Claim.of(other_user, other_message_id, other_digest, "id-2", 3600)
    same = (user, message_id, digest) == (other_user, other_message_id, other_digest)
    assert (one.key == two.key) == same
