"""Who records `sent`: every rule, provider, topic and configuration set."""

from __future__ import annotations

from itertools import product
from typing import Literal

import pytest

from relay.delivery import send_events

TOPICS = (None, "", "arn:aws:sns:us-east-1:1:events")
SETS = (None, "", "the-set")


@pytest.mark.parametrize(("topic", "configuration_set"), list(product(TOPICS, SETS)))
@pytest.mark.parametrize("rule", ["auto", "ses", "ours"])
def test_ses_records_what_it_can(
    rule: Literal["auto", "ses", "ours"], topic: str | None, configuration_set: str | None
) -> None:
    comes_back = bool(topic) and bool(configuration_set)
    wanted = {"auto": not comes_back, "ses": False, "ours": True}[rule]
    found = send_events.ours(rule, provider="ses", events_topic=topic, configuration_set=configuration_set)
    assert found == wanted


@pytest.mark.parametrize(("topic", "configuration_set"), list(product(TOPICS, SETS)))
@pytest.mark.parametrize("rule", ["auto", "ses", "ours"])
def test_with_maildir_the_worker_always_records_the_event_sent(
    rule: Literal["auto", "ses", "ours"], topic: str | None, configuration_set: str | None
) -> None:
    assert send_events.ours(rule, provider="maildir", events_topic=topic, configuration_set=configuration_set)
