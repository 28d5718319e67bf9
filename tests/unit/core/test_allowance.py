"""An account's rate is kept in every second, and used: simulated, by a separate clock."""

from __future__ import annotations

import math
import random

import pytest

from relay.core import allowance as module
from relay.core.allowance import FAR, GRAIN, HORIZON, LARGE, OCTETS_A_SECOND, SHORT, WAY, Allowance, lateness
from scripts.benchmark.pace_simulation import Simulation
from scripts.services.ses_ledger import TOLERANCE, Ledger


def known(rate: float, left: int = -1, off: str = "", *, shares: int = 1) -> Allowance:
    """An allowance whose account has just been asked, at the time 0."""
    allowance = Allowance(fallback=1.0, shares=shares)
    allowance.asked = 0.0
    allowance.learn(rate, left, off)
    return allowance


@pytest.mark.parametrize("jitter", [0.0, 0.02])
@pytest.mark.parametrize("rate", [0.5, 1.0, 3.7, 14.0, 90.0, 500.0])
def test_the_rate_is_kept_in_every_second_and_used(rate: float, jitter: float) -> None:
    allowance = known(rate)
    ledger = Ledger(rate=rate)
    simulation = Simulation([allowance] * 3, ledger, jitter=jitter)
    simulation.run(20.0)
    used = simulation.run(max(20.0, 40.0 / rate))
    assert ledger.most <= max(1.0, rate * TOLERANCE)
    assert ledger.too_fast == 0
    # Of a slow account a whole recipient more or less counts; 3.7 are three in a second, or four.
    assert used >= (0.95 if rate > 10 else 0.9 * math.floor(rate) / rate if rate > 1 else 0.9)


@pytest.mark.parametrize("rate", [2.0, 14.0, 90.0, 500.0])
@pytest.mark.parametrize("seed", range(5))
def test_mails_to_several_recipients_pass_no_second_either(rate: float, seed: int) -> None:
    ledger = Ledger(rate=rate)
    simulation = Simulation(
        [known(rate)], ledger, seed=seed, weight=lambda chance: chance.choice((1, 1, 1, 1, 2, 3, 5, 50))
    )
    simulation.run(60.0)
    # One mail may have more recipients than a second has; then it is alone in that second.
    assert ledger.most <= max(50, math.floor(rate * TOLERANCE))
    assert ledger.too_fast == 0


def test_mails_to_few_recipients_use_a_fast_account_all_the_same() -> None:
    ledger = Ledger(rate=500.0)
    simulation = Simulation([known(500.0)] * 3, ledger, weight=lambda chance: chance.choice((1, 1, 1, 2, 5)))
    simulation.run(5.0)
    assert simulation.run(10.0) >= 0.95
    assert ledger.most <= 500 * TOLERANCE


@pytest.mark.parametrize(("rate", "least"), [(5.0, 0.8), (14.0, 0.88), (49.0, 0.95)])
def test_mails_to_few_recipients_use_most_of_a_slow_account(rate: float, least: float) -> None:
    """Whole mails fit badly into a second of few recipients; what one has to wait for that is made up for."""
    ledger = Ledger(rate=rate)
    weights = (1, 1, 1, 1, 1, 1, 1, 2, 3, 5)
    simulation = Simulation([known(rate)] * 3, ledger, weight=lambda chance: chance.choice(weights))
    simulation.run(10.0)
    assert simulation.run(200.0) >= least
    assert ledger.most <= rate * TOLERANCE


@pytest.mark.parametrize("chance", [0.002, 0.02, 0.05])
def test_refusals_at_random_cost_little_more_than_themselves(chance: float) -> None:
    ledger = Ledger(rate=500.0, chance=chance, seed=3)
    allowance = known(500.0)
    simulation = Simulation([allowance] * 3, ledger)
    simulation.run(10.0)
    assert simulation.run(30.0) >= (1.0 - chance) * 0.93
    assert ledger.most <= 500 * TOLERANCE


class Insistent(Allowance):
    """Of an account that says 100 a second, whatever it takes."""

    def learn(self, rate: float, left: int, off: str) -> None:
        super().learn(100.0, left, off)


@pytest.mark.parametrize(("limit", "seed"), [(15.0, 0), (40.0, 1), (90.0, 2)])
def test_an_account_that_takes_less_than_it_says_is_found_out_and_recovers(limit: float, seed: int) -> None:
    ledger = Ledger(rate=limit)
    simulation = Simulation([Insistent(fallback=1.0)] * 3, ledger, seed=seed)
    simulation.run(10.0)
    refused, calls = ledger.too_fast, ledger.calls
    used = simulation.run(50.0)
    assert (ledger.too_fast - refused) / (ledger.calls - calls) < 0.25
    assert used > 0.5
    ledger.rate = 100.0
    simulation.run(100.0)
    assert simulation.run(20.0) >= 0.9


@pytest.mark.parametrize("chance", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("rate", [14.0, 100.0])
def test_refusals_that_a_lower_rate_does_not_make_fewer_lower_it_for_seconds_alone(rate: float, chance: float) -> None:
    ledger = Ledger(rate=rate, chance=chance, seed=3)
    simulation = Simulation([known(rate)] * 3, ledger)
    simulation.run(10.0)
    assert simulation.run(120.0) >= (1.0 - chance) * (0.85 if chance < 0.3 else 0.5)
    assert ledger.most <= rate * TOLERANCE


def test_a_process_that_stood_still_makes_up_for_nothing() -> None:
    allowance = known(500.0)
    allowance.reserve(1.0, [1] * 20)
    moments = allowance.reserve(11.0, [1] * 50).moments
    assert moments == tuple(sorted(moments))
    assert len(moments) <= 500 * HORIZON + 1


def test_permits_are_spread_evenly_and_given_a_moment_ahead_alone() -> None:
    rate = module.MANY - 1
    grant = known(rate).reserve(1.0, [1] * 50)
    gaps = [later - earlier for earlier, later in zip(grant.moments, grant.moments[1:], strict=False)]
    assert gaps == pytest.approx([1 / (rate * module.MARGIN)] * len(gaps))
    assert grant.moments[-1] <= HORIZON


def test_permits_of_a_high_rate_that_are_close_to_each_other_have_one_moment() -> None:
    """Never one before its request can use it, nor before that of the others that count at the same point."""
    allowance = known(500.0)
    moments = allowance.reserve(1.0, [1] * 50).moments
    each = math.ceil(GRAIN * 500 * module.MARGIN)
    assert moments == tuple(sorted(moments))
    assert [moments.count(moment) for moment in sorted(set(moments))] == [each] * (len(moments) // each)
    assert moments[-1] <= HORIZON
    # A request of another process that comes in the midst of those of a point.
    allowance = known(500.0)
    allowance.reserve(1.0, [1])
    assert allowance.reserve(1.004, [1]).moments == (0.0,)
    assert [recipients for _, recipients in allowance.points] == [2]


def test_the_account_is_asked_once_a_minute_and_mail_waits_for_the_first_answer() -> None:
    allowance = Allowance(fallback=2.0)
    first = allowance.reserve(100.0, [1])
    assert (first.ask, first.moments) == (True, ())
    assert not allowance.reserve(101.0, [1]).ask
    # No answer comes: the rate of the setting, and a further question later.
    unknown = allowance.reserve(106.0, [1])
    assert (unknown.moments, unknown.rate) == ((0.0,), 2.0 * module.MARGIN)
    # It is asked again and again, and no mail waits for that.
    again = allowance.reserve(110.5, [1])
    assert (again.ask, again.moments) == (True, (0.0,))
    allowance.learn(14.0, -1, "")
    asked = [second for second in range(111, 400) if allowance.reserve(float(second), [1]).ask]
    assert asked == [171, 231, 291, 351]


def test_the_days_quota_ends_permits_until_the_account_is_asked_again() -> None:
    allowance = known(100.0, left=3)
    grant = allowance.reserve(10.0, [2, 2])
    assert len(grant.moments) == 1
    rest = allowance.reserve(10.5, [2])
    assert (rest.moments, rest.kind) == ((), SHORT)
    assert allowance.reserve(11.0, [1]).moments == (0.0,)  # one recipient is left
    rest = allowance.reserve(11.5, [1])
    assert (rest.moments, rest.kind) == ((), "quota")
    assert 40 < rest.rest < 60
    assert allowance.reserve(61.0, [1]).ask
    allowance.learn(100.0, -1, "")
    assert allowance.reserve(62.0, [50]).moments == (0.0,)


def test_an_account_that_takes_no_mail_is_asked_again_and_no_permit_given() -> None:
    allowance = known(100.0, off="paused")
    rest = allowance.reserve(10.0, [1])
    assert (rest.moments, rest.kind, rest.rest) == ((), "paused", 50.0)
    again = allowance.reserve(61.0, [1])
    assert (again.ask, again.rest) == (True, 1.0)
    allowance.learn(100.0, -1, "")
    assert allowance.reserve(62.0, [1]).moments


def test_a_permit_that_is_too_far_ahead_is_none() -> None:
    allowance = known(0.5)
    assert allowance.reserve(1.0, [50]).moments == (0.0,)
    far = allowance.reserve(1.0, [1])
    assert (far.moments, far.kind) == ((), FAR)
    assert far.rest > module.FARTHEST - HORIZON


def test_large_mails_keep_to_octets_a_second() -> None:
    allowance = known(500.0)
    assert allowance.wait_for_octets(1.0, 4 * LARGE) == 0.0
    assert allowance.wait_for_octets(1.0, 4 * LARGE) == pytest.approx(4 * LARGE / OCTETS_A_SECOND)
    assert allowance.wait_for_octets(9.0, 4 * LARGE) == 0.0


def test_without_redis_the_shares_together_keep_the_rate() -> None:
    ledger = Ledger(rate=90.0)
    simulation = Simulation([known(90.0, shares=3) for _ in range(3)], ledger)
    simulation.run(5.0)
    assert simulation.run(20.0) >= 0.95
    assert ledger.most <= 90 * TOLERANCE
    assert known(90.0, left=100, shares=3).left == 33


def test_what_is_asked_for_makes_no_difference_to_the_rest() -> None:
    """Any requests in any order keep the window: the property, by a generator."""
    for seed in range(60):
        chance = random.Random(seed)
        rate = chance.choice((0.7, 5.0, 14.0, 60.0, 400.0))
        allowance, ledger, now = known(rate), Ledger(rate=rate), 1.0
        calls: list[tuple[float, int]] = []
        for _ in range(200):
            weights = [chance.choice((1, 1, 2, 7, 50)) for _ in range(chance.randrange(1, 30))]
            grant = allowance.reserve(now, weights, passed=chance.randrange(3), throttled=chance.randrange(2))
            calls += [(now + moment, weight) for moment, weight in zip(grant.moments, weights, strict=False)]
            now += chance.choice((0.0, 0.001, 0.03, 0.5, grant.again))
        assert [moment for moment, _ in calls] == sorted(moment for moment, _ in calls)
        for moment, weight in calls:
            ledger.take(moment, weight)
        assert ledger.too_fast == 0


@pytest.mark.parametrize(
    "weights", [(1,), (1, 1, 1, 1, 1, 1, 1, 2, 3, 5), (1, 1, 1, 10, 50)], ids=["alone", "several", "lumps"]
)
@pytest.mark.parametrize("rate", [1.0, 2.0, 9.0, 14.0, 20.0, 30.0, 49.0, 60.0, 100.0, 500.0])
def test_permits_that_are_used_as_late_as_they_may_be_pass_no_second(rate: float, weights: tuple[int, ...]) -> None:
    """What counts is when a call comes: late for its permit and nearly WAY beyond the usual on its way, or neither."""
    seconds = 4.0 + 200.0 / rate
    for seed in range(3):
        chance = random.Random(seed)
        allowance, now, calls = known(rate), 1.0, []
        while now < 1.0 + seconds:
            wanted = [chance.choice(weights) for _ in range(20)]
            grant = allowance.reserve(now, wanted)
            for moment, weight in zip(grant.moments, wanted, strict=False):
                late = chance.choice((0.0, lateness(grant.rate, weight) + 0.99 * WAY))
                calls.append((now + moment + late, weight))
            now += max(0.001, grant.again)
        ledger = Ledger(rate=rate)
        for when, weight in sorted(calls):
            ledger.take(when, weight)
        assert ledger.most <= max(rate * TOLERANCE, *weights)
        assert ledger.recipients >= seconds * rate * 0.95 or len(weights) > 1


def test_a_permit_that_nothing_was_sent_by_uses_up_nothing_of_the_day() -> None:
    allowance = known(100.0, left=4)
    assert len(allowance.reserve(10.0, [4]).moments) == 1
    assert allowance.reserve(10.5, [4]).kind == "quota"
    assert len(allowance.reserve(11.0, [4], void=4).moments) == 1
    assert allowance.reserve(11.5, [1]).left == 0


def test_who_needs_time_until_a_mail_leaves_gets_later_permits_and_uses_the_rate_all_the_same() -> None:
    allowance, now, moments = known(100.0), 1.0, []
    while now < 11.0:
        grant = allowance.reserve(now, [1] * 20, lead=0.2)
        assert all(moment >= 0.2 - 1e-9 for moment in grant.moments)
        moments += [now + moment for moment in grant.moments]
        now += max(0.001, grant.again)
    assert len([moment for moment in moments if 1.2 <= moment < 11.2]) >= 950


@pytest.mark.parametrize("seed", range(4))
def test_an_account_whose_rate_changes_gets_no_more_than_it_takes_by_then(seed: int) -> None:
    """From 14 a second to 500, to nothing said, and back: as soon as it is known, and what is on its way has left."""
    chance = random.Random(seed)
    allowance, now, calls, changes = known(14.0), 1.0, [], [(1.0, 14.0)]
    while now < 40.0:
        if now > changes[-1][0] + 4.0:
            changes.append((now, chance.choice((1.0, 14.0, 500.0))))
            allowance.learn(changes[-1][1], -1, "")
        grant = allowance.reserve(now, [1] * 20)
        calls += [now + moment for moment in grant.moments]
        now += max(0.001, grant.again)
    for (since, rate), (until, _) in zip(changes, [*changes[1:], (now, 0.0)], strict=True):
        within = [call for call in calls if since + 2 * HORIZON < call < until]
        for position, call in enumerate(within):
            assert len([later for later in within[position:] if later < call + 1.0]) <= rate * TOLERANCE
