"""What replies make of a mail: the name by which a host knows it, who does not get it, and no secret in any text."""

from __future__ import annotations

import pytest

from config.settings import Settings
from relay.delivery.content import Held
from relay.delivery.outcome import KINDS, Failed, RefusedRecipient, Verdict
from relay.delivery.provider import Handover
from relay.delivery.smart_host import NotOpened, SmartHost
from relay.delivery.smtp_client import Reply
from relay.delivery.smtp_outcome import Outcomes, most_hopeful, of_broken, of_unopened

PASSWORD = "the password"


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    settings = Settings(
        database_url="postgres://",
        smarthost_host="localhost",
        smarthost_user="ann",
        smarthost_password=PASSWORD,
    )
    handover = Handover(
        email_id="0f1e",
        sender="ann@example.com",
        to=("to@x.example",),
        cc=("cc@x.example",),
        bcc=(),
        content=Held(b"\r\n"),
        region="smtp",
        configuration_set=None,
    )
    return Outcomes(SmartHost(settings), handover)


def reply(codes: str) -> Reply:
    code, _, text = codes.partition(" ")
    return Reply(int(code), (text,))


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("250 2.0.0 Ok: queued as 4XyZ12", "4XyZ12"),
        ("250 2.0.0 Ok: queued as <4XyZ12>", "4XyZ12"),
        ("250 OK id=1rAbCd-000001-Xy", "1rAbCd-000001-Xy"),
        ("250 2.6.0 <name@host.example> [InternalId=1] Queued mail for delivery", "name@host.example"),
        ("250 2.0.0 Ok", "0f1e@example.com"),
        ("250 2.0.0 <to@x.example> accepted", "0f1e@example.com"),
        ("250 2.0.0 <cc@x.example> accepted, id=D1", "D1"),
        (f"250 2.0.0 queued as {'x' * 200}", "x" * 120),
    ],
)
def test_the_name_by_which_a_host_knows_a_mail(outcomes: Outcomes, said: str, name: str) -> None:
    """An address of a recipient is none; where there is none it is the Message-ID."""
    assert outcomes.message_id(reply(said)) == name


def test_a_text_is_for_the_row_unless_it_repeats_the_password(outcomes: Outcomes) -> None:
    assert outcomes.failed(reply("550 5.1.1 no such user"), "RCPT").message == "RCPT: 550 5.1.1 no such user"
    assert outcomes.failed(reply(f"550 5.1.1 {PASSWORD}"), "text").message == "text: 550 5.1.1"
    assert outcomes.named("a@x.example", reply(f"550 {PASSWORD}")).message == "550"
    # Behind what is shown of a text, too.
    assert outcomes.failed(reply(f"550 {'x' * 600}"), "text").message == f"text: 550 {'x' * 500}"
    assert outcomes.failed(reply(f"550 {'x' * 600}{PASSWORD}"), "text").message == "text: 550"


@pytest.mark.parametrize(
    ("said", "passing", "expected"),
    [("550 5.1.1 nobody", False, False), ("550 5.1.1 nobody", True, True), ("450 4.2.2 full", False, True)],
)
def test_a_recipient_that_is_refused_is_named(outcomes: Outcomes, said: str, passing: bool, expected: bool) -> None:
    named = outcomes.named("a@x.example", reply(said), passing=passing)
    assert named == RefusedRecipient(address="a@x.example", passing=expected, code=said[:9], message=said)


def test_of_several_refusals_the_one_that_leaves_most_hope_decides(outcomes: Outcomes) -> None:
    nobody, full, trouble = (reply(each) for each in ("550 5.1.1 nobody", "450 4.2.2 full", "451 4.3.0 trouble"))
    assert outcomes.all_refused([nobody]).verdict is Verdict.PERMANENT
    assert outcomes.all_refused([nobody, trouble]).verdict is Verdict.EITHER
    assert outcomes.all_refused([trouble, full, nobody]).verdict is Verdict.PASSING
    every = [Failed(verdict, "x", "x") for verdict in Verdict]
    assert most_hopeful(every).verdict is Verdict.UNCLEAR


def test_what_is_no_reply_is_no_refusal() -> None:
    broken = of_broken("ConnectionClosed")
    assert (broken.verdict, broken.code, broken.kind) == (Verdict.EITHER, "ConnectionClosed", "unreachable")
    assert broken.pause > 0
    kinds = ("unreachable", "tls", "credentials", "server_error")
    failures = {kind: of_unopened(NotOpened(kind, "535 5.7.8")) for kind in kinds}
    assert {failed.verdict for failed in failures.values()} == {Verdict.NOT_THIS_MAIL}
    assert set(failures) <= set(KINDS)
    assert {kind: failed.kind for kind, failed in failures.items()} == {kind: kind for kind in kinds}
    # What only a person can change is tried less often.
    assert failures["credentials"].pause == failures["tls"].pause > failures["unreachable"].pause > 0
