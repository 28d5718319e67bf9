"""What GetAccount says, and what it may say besides: nothing of it may stop or hurry mail by mistake."""

from __future__ import annotations

import math
from typing import Any

import pytest

from relay.delivery.account import Account, account_of


def says(**document: Any) -> Account:
    quota = {"MaxSendRate": 14.0, "Max24HourSend": 50_000.0, "SentLast24Hours": 100.5}
    return account_of({"SendQuota": quota, "SendingEnabled": True, "EnforcementStatus": "HEALTHY"} | document)


def test_rate_and_what_is_left_of_the_day() -> None:
    assert says() == Account(rate=14.0, left=49_899, off="")


@pytest.mark.parametrize("most", [-1, -1.0, None, "50", math.nan, math.inf, True])
def test_no_limit_of_the_day(most: object) -> None:
    assert says(SendQuota={"MaxSendRate": 14, "Max24HourSend": most, "SentLast24Hours": 10}).left == -1


def test_a_used_up_day_is_no_negative_number() -> None:
    assert says(SendQuota={"MaxSendRate": 14, "Max24HourSend": 200, "SentLast24Hours": 201}).left == 0


@pytest.mark.parametrize("rate", [0, -1, None, "14", math.nan, math.inf, True])
def test_a_rate_that_makes_no_sense_is_none(rate: object) -> None:
    assert says(SendQuota={"MaxSendRate": rate}) == Account(rate=0.0, left=-1, off="")


@pytest.mark.parametrize("quota", [None, [], "x", 3])
def test_a_quota_that_is_none(quota: object) -> None:
    assert says(SendQuota=quota) == Account(rate=0.0, left=-1, off="")


def test_why_an_account_takes_no_mail() -> None:
    assert says(SendingEnabled=False).off == "paused"
    assert says(SendingEnabled=False, EnforcementStatus="SHUTDOWN").off == "suspended"
    assert says(EnforcementStatus="PROBATION").off == ""
    assert account_of({}) == Account(rate=0.0, left=-1, off="")
