"""Places of a process by user, against a model that counts them anew each time."""

from __future__ import annotations

import gevent
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.shares import Share, Shares

#: What is done: `somebody`, `of` a user, `known` or `end` of the mail with a number.
STEPS = st.lists(st.tuples(st.sampled_from(["somebody", "of", "known", "end"]), st.sampled_from("ab"), st.integers(0)))


@given(places=st.integers(1, 30), steps=STEPS)
def test_no_user_has_all_places_even_where_the_owner_is_found_out_late(
    places: int, steps: list[tuple[str, str, int]]
) -> None:
    shares = Shares(places)
    most = max(1, places - max(1, places // 10))
    mails: list[tuple[Share, str | None]] = []
    for step, user, number in steps:
        counts = {each: sum(1 for _, owner in mails if owner == each) for each in "ab"}
        unknown = sum(1 for _, owner in mails if owner is None)
        assert dict(shares.counts) == {each: count for each, count in counts.items() if count}
        assert shares.limit == most - unknown
        assert shares.room == most - unknown - max(counts.values())
        # Whichever user the others belong to, none has more than that.
        assert max(counts.values()) + unknown <= most
        at = number % len(mails) if mails else None
        if step == "somebody" and shares.room > 0:
            mails.append((shares.of_unknown(), None))
        elif step == "of" and counts[user] < shares.limit:
            mails.append((shares.of(user), user))
        elif step == "known" and at is not None and mails[at][1] is None:
            mails[at][0].belongs_to(user)
            mails[at] = mails[at][0], user
        elif step == "end" and at is not None:
            mails.pop(at)[0].end()
    for share, _ in mails:
        share.end()
    assert dict(shares.counts) == {}
    assert shares.room == most


def test_who_waits_goes_on_as_soon_as_there_is_room() -> None:
    shares = Shares(2)
    first = shares.of("a")
    waiting = gevent.spawn(shares.wait)
    gevent.sleep(0)
    assert not waiting.ready()
    first.end()
    waiting.get(timeout=10)
    second = shares.of_unknown()
    waiting = gevent.spawn(shares.wait)
    gevent.sleep(0)
    assert not waiting.ready()
    second.belongs_to("b")
    second.end()
    waiting.get(timeout=10)
