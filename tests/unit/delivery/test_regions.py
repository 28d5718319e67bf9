"""Whose trouble a failure is: decided by what becomes of the other mails of the region. The clock is the test's."""

from __future__ import annotations

import random

import pytest

from relay.core import metrics
from relay.delivery import regions as module
from relay.delivery.content import Held
from relay.delivery.outcome import Failed, Outcome, Scope, Sent, Verdict, of_ses_error, of_silence
from relay.delivery.provider import Handover
from relay.delivery.regions import LONGEST_PAUSE, LONGEST_REST, Regions
from tests.support.clock import Clock

SENT = Sent("id")
SERVER_ERROR = of_ses_error(500, "InternalFailure", "")
LOST = of_silence("TimeoutError", "", began=True)
UNREACHABLE = of_silence("ConnectionRefusedError", "", began=False)
THROTTLED = of_ses_error(429, "TooManyRequestsException", "")
REJECTED = of_ses_error(400, "MessageRejected", "Email address is not verified.")
DENIED = of_ses_error(403, "AccessDeniedException", "not authorized to perform: ses:SendRawEmail")
NO_SET = of_ses_error(404, "NotFoundException", "no such set")


@pytest.fixture
def regions(clock: Clock) -> Regions:
    return Regions()


def mail(
    email_id: str,
    region: str = "r",
    configuration_set: str | None = None,
    sender: str = "a@a.example",
    user_id: str | None = None,
) -> Handover:
    return Handover(
        email_id=email_id,
        sender=sender,
        to=(),
        cc=(),
        bcc=(),
        content=Held(b""),
        region=region,
        configuration_set=configuration_set,
        user_id=user_id,
    )


def send(regions: Regions, handover: Handover, outcome: Outcome) -> Outcome | float:
    """The outcome as it was judged; or the seconds that the mail has to wait instead."""
    return regions.admit(handover) or regions.judge(handover, outcome)


@pytest.mark.parametrize("failure", [SERVER_ERROR, LOST])
def test_alone_it_is_the_regions_trouble_and_the_mail_waits_longer(regions: Regions, failure: Failed) -> None:
    judged = send(regions, mail("1"), failure)
    assert isinstance(judged, Failed)
    assert judged.verdict is Verdict.NOT_THIS_MAIL
    assert judged.pause == 2 * failure.pause


@pytest.mark.parametrize("failure", [SERVER_ERROR, LOST])
def test_where_another_mail_passed_it_is_the_mails(regions: Regions, clock: Clock, failure: Failed) -> None:
    send(regions, mail("1"), SENT)
    clock.now += 59
    for _ in range(3):
        judged = send(regions, mail("2"), failure)
        assert isinstance(judged, Failed)
        assert (judged.verdict, judged.pause) == (Verdict.PASSING, 0.0)
    assert send(regions, mail("3"), SENT) == SENT  # nothing rests


def test_a_mail_that_passed_in_another_region_or_too_long_ago_is_no_witness(regions: Regions, clock: Clock) -> None:
    send(regions, mail("1", "other"), SENT)
    send(regions, mail("2"), SENT)
    clock.now += 61
    judged = send(regions, mail("3"), SERVER_ERROR)
    assert isinstance(judged, Failed)
    assert judged.verdict is Verdict.NOT_THIS_MAIL
    assert send(regions, mail("4", "other"), SENT) == SENT


def test_when_a_second_mail_fails_it_is_the_region_whatever_passed_before(regions: Regions) -> None:
    send(regions, mail("1"), SENT)
    first = send(regions, mail("2"), SERVER_ERROR)
    second = send(regions, mail("3"), SERVER_ERROR)
    assert isinstance(first, Failed)
    assert isinstance(second, Failed)
    assert (first.verdict, second.verdict) == (Verdict.PASSING, Verdict.NOT_THIS_MAIL)
    assert isinstance(send(regions, mail("2"), SERVER_ERROR), float)  # its second try waits, and costs it nothing


def test_nothing_sent_is_never_the_mails_fault(regions: Regions) -> None:
    send(regions, mail("1"), SENT)
    judged = send(regions, mail("2"), UNREACHABLE)
    assert isinstance(judged, Failed)
    assert judged.verdict is Verdict.NOT_THIS_MAIL


def test_one_mail_that_keeps_failing_holds_up_no_other(regions: Regions, clock: Clock) -> None:
    for _ in range(10):
        judged = send(regions, mail("bad"), SERVER_ERROR)
        assert isinstance(judged, Failed)
        clock.now += judged.pause
    send(regions, mail("bad"), SERVER_ERROR)
    assert send(regions, mail("good"), SENT) == SENT
    judged = send(regions, mail("bad"), SERVER_ERROR)
    assert isinstance(judged, Failed)
    assert judged.verdict is Verdict.PASSING  # and now it can be told


def test_rests_grow_and_one_mail_is_tried_after_each(regions: Regions, clock: Clock) -> None:
    send(regions, mail("0"), UNREACHABLE)
    rests = []
    for number in range(1, 12):
        wait = send(regions, mail("other"), SENT)
        assert isinstance(wait, float)
        assert wait > 0
        state_rest = regions.all_rest()
        assert 0 < state_rest <= LONGEST_PAUSE
        clock.now += LONGEST_REST
        probe = mail(str(number))
        assert regions.admit(probe) == 0.0
        assert regions.wait("other", "r", None, "a@a.example") > 0  # one is tried, not all
        judged = regions.judge(probe, UNREACHABLE)
        assert isinstance(judged, Failed)
        rests.append(judged.pause)
    assert rests[:4] == [10.0, 20.0, 40.0, 80.0]
    assert rests[-1] == LONGEST_REST
    clock.now += LONGEST_REST
    assert send(regions, mail("x"), SENT) == SENT
    assert regions.wait("other", "r", None, "a@a.example") == 0.0
    assert metrics.DELIVERY_PAUSED_REGIONS.value == 0
    judged = send(regions, mail("y"), UNREACHABLE)
    assert isinstance(judged, Failed)
    assert judged.pause == 5.0  # from the beginning


def test_a_probe_of_which_nothing_is_heard_is_given_up(regions: Regions, clock: Clock) -> None:
    send(regions, mail("0"), UNREACHABLE)
    clock.now += 5
    assert regions.admit(mail("vanished")) == 0.0
    assert regions.admit(mail("other")) > 0
    clock.now += 200
    assert send(regions, mail("other"), SENT) == SENT


def test_a_refusal_of_the_mail_shows_that_the_region_answers(regions: Regions, clock: Clock) -> None:
    send(regions, mail("0"), UNREACHABLE)
    clock.now += 5
    assert send(regions, mail("1"), REJECTED) == REJECTED
    assert send(regions, mail("2"), SENT) == SENT


def test_those_on_their_way_neither_prolong_a_rest_nor_end_it(regions: Regions) -> None:
    flying = [mail(str(number)) for number in range(20)]
    for each in flying:
        assert regions.admit(each) == 0.0
    pauses = []
    for each in flying[:10]:
        judged = regions.judge(each, THROTTLED)
        assert isinstance(judged, Failed)
        pauses.append(judged.pause)
    assert max(pauses) <= 1.0
    for each in flying[10:]:
        regions.judge(each, SENT)
    assert regions.wait("new", "r", None, "a@a.example") > 0


def test_a_missing_right_stops_one_domain_first_and_the_region_where_a_second_one_lacks_it(
    regions: Regions, clock: Clock
) -> None:
    """A customer may write a domain into From that the account may not send for."""
    send(regions, mail("1"), DENIED)
    assert regions.wait("2", "r", None, "x@a.example") > 0
    assert regions.wait("2", "r", None, "b@b.example") == 0.0
    # It may be all mail for all that is known: the next is looked for a little later.
    assert regions.all_rest() == LONGEST_PAUSE
    clock.now += 300
    send(regions, mail("1"), DENIED)
    assert regions.wait("2", "r", None, "b@b.example") == 0.0
    send(regions, mail("2", sender="b@b.example"), DENIED)
    assert regions.wait("2", "r", None, "c@c.example") > 0


def test_a_missing_right_slows_no_other_domain_once_a_mail_has_passed(regions: Regions, clock: Clock) -> None:
    send(regions, mail("1"), DENIED)
    send(regions, mail("2", sender="b@b.example"), SENT)
    assert regions.all_rest() == 0.0
    send(regions, mail("3", sender="c@c.example"), DENIED)
    assert regions.all_rest() == 0.0
    assert regions.wait("4", "r", None, "b@b.example") == 0.0


def test_a_missing_right_stops_one_domain_where_others_pass(regions: Regions, clock: Clock) -> None:
    send(regions, mail("1"), DENIED)
    send(regions, mail("2", sender="b@b.example"), DENIED)
    clock.now += 60
    send(regions, mail("3", sender="b@b.example"), SENT)
    send(regions, mail("4", sender="a@A.example"), DENIED)
    send(regions, mail("9", sender="c@c.example"), DENIED)
    assert regions.wait("5", "r", None, "x@a.example") > 0
    assert regions.wait("6", "r", None, "b@b.example") == 0.0
    assert regions.all_rest() == 0.0
    clock.now += 300
    assert send(regions, mail("7", sender="x@a.example"), SENT) == SENT
    assert regions.wait("8", "r", None, "x@a.example") == 0.0


def test_parts_of_a_region_are_forgotten_where_they_are_many(
    regions: Regions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs memory, and time with each rest; a customer has any number of domains to write into From."""
    monkeypatch.setattr(module, "_MOST", 10)
    send(regions, mail("1"), SENT)
    for number in range(50):
        sender = f"a@a{number}.example"
        send(regions, mail(f"mail {number}", configuration_set=f"set {number}", sender=sender), DENIED)
        send(regions, mail(f"other {number}", configuration_set=f"set {number}"), NO_SET)
        send(regions, mail("1"), SENT)
    assert len(regions._states) == 10
    assert regions.wait("2", "r", "set 49", "b@b.example") > 0
    assert regions.wait("2", "r", None, "b@a49.example") > 0
    assert regions.wait("2", "r", "set 1", "b@b.example") == 0.0


def test_a_configuration_set_that_is_missing_stops_its_own_mail_alone(regions: Regions) -> None:
    judged = send(regions, mail("1", configuration_set="gone"), NO_SET)
    assert isinstance(judged, Failed)
    assert judged.verdict is Verdict.NOT_THIS_MAIL
    assert regions.wait("2", "r", "gone", "a@a.example") > 0
    assert regions.wait("3", "r", "there", "a@a.example") == 0.0
    assert regions.wait("4", "other", "gone", "a@a.example") == 0.0
    assert NO_SET.scope is Scope.CONFIGURATION_SET


def test_another_region_goes_on_and_nothing_pauses_all(regions: Regions) -> None:
    send(regions, mail("1", "well"), SENT)
    send(regions, mail("2", "ill"), UNREACHABLE)
    assert regions.all_rest() == 0.0
    assert send(regions, mail("3", "well"), SENT) == SENT


@pytest.mark.parametrize("seed", range(20))
def test_an_outage_uses_up_no_attempt_and_a_bad_mail_ends(regions: Regions, clock: Clock, seed: int) -> None:
    """A simulated hour: one region, a mail every second or so, one of them poison, outages of any length between."""
    chance = random.Random(seed)
    outages = [(start, start + chance.uniform(1, 400)) for start in (100.0, 700.0, 1500.0)]
    attempts: dict[str, int] = {}
    due = {f"m{number}": number * chance.uniform(0.5, 1.5) for number in range(1500)} | {"poison": 50.0}
    done: set[str] = set()
    begun = clock.now
    while due:
        email_id = min(due, key=lambda each: due[each])
        clock.now = max(clock.now, begun + due[email_id])
        moment = clock.now - begun
        away = any(start <= moment < end for start, end in outages)
        outcome: Outcome = SERVER_ERROR if away or email_id == "poison" else SENT
        judged = send(regions, mail(email_id), outcome)
        if isinstance(judged, float):
            due[email_id] = moment + judged
        elif isinstance(judged, Sent):
            done.add(email_id)
            del due[email_id]
        elif judged.verdict is Verdict.NOT_THIS_MAIL:
            due[email_id] = moment + judged.pause
        else:
            attempts[email_id] = attempts.get(email_id, 0) + 1
            due[email_id] = moment + 2 ** min(attempts[email_id] + 1, 6)
            if attempts[email_id] == 3:
                del due[email_id]
        assert moment < 20_000
    assert len(done) == 1500
    assert attempts.pop("poison") == 3
    # Who meets the beginning of an outage may pay for it, until the next mail fails: it can't be told from poison.
    assert max(attempts.values(), default=0) <= 2
    assert len(attempts) <= len(outages)


@pytest.mark.parametrize("passed", [0, 1])
@pytest.mark.parametrize("failure", [SERVER_ERROR, LOST])
def test_mails_of_one_user_that_fail_hold_up_no_other_user(
    regions: Regions, clock: Clock, failure: Failed, passed: int
) -> None:
    """A content filter puts them off, however many they are; whether mails of others have passed before or not."""
    for number in range(passed):
        send(regions, mail(f"before {number}", user_id="good"), SENT)
    for number in range(20):
        for each in range(3):
            send(regions, mail(f"bad {number} {each}", user_id="bad"), failure)
        assert regions.wait(f"good {number}", "r", None, "a@a.example", user_id="good") == 0.0
        assert send(regions, mail(f"good {number}", user_id="good"), SENT) == SENT
        clock.now += 0.5
    assert regions.all_rest() == 0.0
    # One at a time is tried, the others wait.
    for number in range(20):
        send(regions, mail(f"bad {number}", user_id="bad"), failure)
    assert regions.wait("bad", "r", None, "a@a.example", user_id="bad") > 0
    assert regions.wait("good", "r", None, "a@a.example", user_id="good") == 0.0
    assert regions.all_rest() == 0.0  # nor is less work looked for


def test_a_user_whose_mails_fail_is_tried_again_and_all_goes_on_when_one_passes(regions: Regions, clock: Clock) -> None:
    send(regions, mail("good", user_id="good"), SENT)
    for number in range(3):
        send(regions, mail(f"bad {number}", user_id="bad"), SERVER_ERROR)
    assert regions.wait("bad", "r", None, "a@a.example", user_id="bad") > 0
    clock.now += 50
    assert send(regions, mail("bad", user_id="bad"), SENT) == SENT
    assert regions.wait("bad", "r", None, "a@a.example", user_id="bad") == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_of_several_users_an_outage_uses_up_few_attempts_and_bad_mails_end(
    regions: Regions, clock: Clock, seed: int
) -> None:
    """40 minutes are simulated, a mail every second. One user has mails that always fail."""
    chance = random.Random(seed)
    outages = [(start, start + chance.uniform(1, 300)) for start in (100.0, 800.0)]
    users = {f"m{number}": f"user {chance.randrange(4)}" for number in range(2400)}
    users |= {f"bad {number}": "bad" for number in range(10)} | {f"fine {number}": "bad" for number in range(5)}
    due = {email_id: chance.uniform(0, 2400 if user != "bad" else 1300) for email_id, user in users.items()}
    born = dict(due)
    attempts: dict[str, int] = {}
    done: set[str] = set()
    late = []
    begun = clock.now
    while due:
        email_id = min(due, key=lambda each: due[each])
        clock.now = max(clock.now, begun + due[email_id])
        moment = clock.now - begun
        away = any(start <= moment < end for start, end in outages)
        outcome: Outcome = SERVER_ERROR if away or email_id.startswith("bad") else SENT
        judged = send(regions, mail(email_id, user_id=users[email_id]), outcome)
        if isinstance(judged, float):
            due[email_id] = moment + judged
        elif isinstance(judged, Sent):
            done.add(email_id)
            del due[email_id]
            if users[email_id] != "bad" and not any(start - 1 <= moment < end + 700 for start, end in outages):
                late.append(moment - born[email_id])
        elif judged.verdict is Verdict.NOT_THIS_MAIL:
            due[email_id] = moment + judged.pause
        else:
            attempts[email_id] = attempts.get(email_id, 0) + 1
            due[email_id] = moment + 2 ** min(attempts[email_id] + 1, 6)
            if attempts[email_id] == 3:
                del due[email_id]
        assert moment < 50_000
    ended = {email_id for email_id, count in attempts.items() if count == 3}
    assert ended == {email_id for email_id in users if email_id.startswith("bad")}
    assert len(done) == len(users) - len(ended)
    # Two at most meet the beginning of an outage: one of them of the user whose mails had failed before.
    assert sum(count for email_id, count in attempts.items() if email_id not in ended) <= 2 * len(outages)
    assert late
    assert max(late) < 1.0
