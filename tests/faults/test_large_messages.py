"""Large messages are known when they come again, though each is stored by a process with separate connections."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from tests.faults.load import Fate, make_mail
from tests.faults.stage import Stage

SetUp = Callable[..., Stage]


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_repeat_is_known_also_where_redis_takes_longer_than_small_messages_wait(stage: SetUp, seconds: float) -> None:
    ground = stage()
    mail = make_mail(1, size=60_000)
    ground.valkey_proxy.delay_to_client = seconds
    with contextlib.closing(ground.talk()) as client:
        first, second = client.deliver(mail), client.deliver(mail)
    assert (first.fate, second.fate) == (Fate.ACCEPTED, Fate.ACCEPTED)
    assert first.email_id == second.email_id
    assert b"already queued" in second.reply
