"""What an account lets through: the same for all processes with Redis, a share of it for each without."""

from __future__ import annotations

import time

import gevent
import pytest

from relay.core import metrics
from relay.core.allowance import MARGIN
from relay.delivery.account import UNTOLD
from relay.delivery.permit import Permit
from scripts.services import free_port
from tests.support.paces import Asked, MakePace


def test_the_first_permits_after_redis_clock_was_put_forward_are_void(make_pace: MakePace) -> None:
    """The server takes the permits that others hold for past ones."""
    pace = make_pace()
    pace.wait("r", "user", 1, 1000)
    account = pace._of("r")
    account._spare.clear()
    permits: list[list[Permit]] = []
    given = account._allowance.permits
    account._allowance.permits = lambda *arguments: permits.append(given(*arguments)) or permits[-1]  # type: ignore[method-assign, func-returns-value]
    account._allowance._clock._offset -= 7200.0
    assert isinstance(pace.wait("r", "user", 2, 1000), Permit)
    assert all(permit.latest < time.monotonic() - 60 for permit in permits[0])
    assert len(permits) > 1


def test_one_process_of_all_asks_the_account(make_pace: MakePace, asked: Asked) -> None:
    paces = [make_pace() for _ in range(3)]
    gevent.joinall([gevent.spawn(pace.wait, "r", "user", 1, 1000) for pace in paces for _ in range(5)])
    assert asked.times == 1


def test_an_account_that_may_not_be_asked_has_the_rate_of_the_setting(make_pace: MakePace, asked: Asked) -> None:
    asked.says = UNTOLD
    pace = make_pace(fallback=50.0)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    pace.wait("r", "user", 1, 1000)
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(50.0 * MARGIN)


@pytest.mark.parametrize("away", [False, True])
def test_without_redis_each_process_has_its_share(make_pace: MakePace, away: bool) -> None:
    pace = make_pace(f"redis://127.0.0.1:{free_port()}/0" if away else None, shares=4)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(1000.0 * MARGIN / 4)


def test_redis_goes_and_comes_back(make_pace: MakePace, asked: Asked, redis_url: str) -> None:
    pace = make_pace(shares=4)
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    account = pace._of("r")
    shared, account._allowance._shared = (
        account._allowance._shared,
        make_pace(f"redis://127.0.0.1:{free_port()}/0")._of("r")._allowance._shared,
    )
    account._spare.clear()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(1000.0 * MARGIN / 4)
    account._allowance._shared = shared
    account._spare.clear()
    assert isinstance(pace.wait("r", "user", 1, 1000), Permit)  # for a moment all keep to their shares still
    assert metrics.DELIVERY_RATE.labels("r").value == pytest.approx(1000.0 * MARGIN / 4)
