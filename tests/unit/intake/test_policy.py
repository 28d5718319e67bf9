"""Who may send what to whom, without any server: the rules of issue-level behaviour that need no I/O."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import RecipientRule
from relay.core.address import comparison_form
from relay.core.provider_limits import MAX_COMPOSED_OCTETS, composed_octets
from relay.core.records import ApiKey
from relay.intake import policy
from relay.intake.policy import RECIPIENTS_PER_ROW, Recipients, may_send_from, recipients_of, rows
from relay.intake.refusals import refusal, wrong_domain
from relay.mail import Fault, Limits, Message, Unusable, parse


def key(domain: str | None) -> ApiKey:
    return ApiKey(str(uuid.uuid4()), "user-1", "full_access", domain)


def message(**fields: object) -> Message:
    return Message(**({"sender": "a@example.com", "from_addresses": ("a@example.com",)} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("domain", "senders", "allowed"),
    [
        (None, ("a@anywhere.example",), True),
        ("example.com", ("a@example.com",), True),
        ("example.com", ("a@example.com", "b@example.com"), True),
        ("example.com", ("a@example.com", "b@evil.example"), False),
        ("example.com", ("a@sub.example.com",), False),
        ("example.com", ("a@notexample.com",), False),
        ("example.com", ("a@example.com.evil.example",), False),
        ("example.com", ('"b@example.com"@evil.example',), False),
        ("xn--bcher-kva.example", ("a@xn--bcher-kva.example",), True),
    ],
)
def test_domain_restriction(domain: str | None, senders: tuple[str, ...], allowed: bool) -> None:
    assert may_send_from(key(domain), senders) is allowed
    reply = wrong_domain(key(domain))
    assert (reply.code, reply.enhanced) == (550, "5.7.1")


HEADERS = message(to=("to@x.example",), cc=("cc@x.example", "TO@x.example"), bcc=("bcc@x.example",))


@pytest.mark.parametrize(
    ("rule", "envelope", "expected"),
    [
        (RecipientRule.MERGE, (), (("to@x.example",), ("cc@x.example",), ("bcc@x.example",))),
        (
            RecipientRule.MERGE,
            ("To@x.example", "hidden@x.example"),
            (("to@x.example",), ("cc@x.example",), ("bcc@x.example", "hidden@x.example")),
        ),
        (RecipientRule.ENVELOPE, ("cc@x.example", "new@x.example"), ((), ("cc@x.example",), ("new@x.example",))),
        (RecipientRule.ENVELOPE, ("bcc@x.example",), ((), (), ("bcc@x.example",))),
        (RecipientRule.HEADERS, ("new@x.example",), (("to@x.example",), ("cc@x.example",), ("bcc@x.example",))),
    ],
)
def test_recipients(rule: RecipientRule, envelope: tuple[str, ...], expected: tuple[tuple[str, ...], ...]) -> None:
    found = recipients_of(HEADERS, envelope, rule)
    assert (found.to, found.cc, found.bcc) == expected


def test_undisclosed_recipients_are_those_of_the_envelope() -> None:
    found = recipients_of(message(), ("a@x.example", "b@x.example"), RecipientRule.MERGE)
    assert found == Recipients((), (), ("a@x.example", "b@x.example"))


addresses = st.lists(st.sampled_from([f"{name}@x.example" for name in ("a", "A", "b", "c", "D", "e")]), max_size=6).map(
    tuple
)


@given(addresses, addresses, addresses, addresses, st.sampled_from(RecipientRule))
def test_each_recipient_is_in_one_field_once(
    to: tuple[str, ...], cc: tuple[str, ...], bcc: tuple[str, ...], envelope: tuple[str, ...], rule: RecipientRule
) -> None:
    mailboxes = recipients_of(message(to=to, cc=cc, bcc=bcc), envelope, rule).mailboxes()
    assert len(mailboxes) == len(set(mailboxes))
    header = {comparison_form(address) for address in (*to, *cc, *bcc)}
    in_envelope = {comparison_form(address) for address in envelope}
    wanted = {
        RecipientRule.MERGE: header | in_envelope,
        RecipientRule.ENVELOPE: in_envelope,
        RecipientRule.HEADERS: header,
    }
    assert set(mailboxes) == wanted[rule]


@pytest.mark.parametrize("count", [1, 50, 51, 100, 101])
def test_no_row_has_more_recipients_than_ses_takes(count: int) -> None:
    to = tuple(f"to{number}@x.example" for number in range(count // 2))
    cc = tuple(f"cc{number}@x.example" for number in range(count - count // 2))
    everyone = Recipients(to, cc, ())
    portions = everyone.portions()
    assert all(0 < len(portion.mailboxes()) <= RECIPIENTS_PER_ROW for portion in portions)
    assert sum((portion.mailboxes() for portion in portions), ()) == everyone.mailboxes()
    assert all(set(portion.to) <= set(to) and set(portion.cc) <= set(cc) for portion in portions)


def test_rows_share_everything_but_recipients_ids_and_keys() -> None:
    mail = message(subject="s", html="<p>", idempotency_key="k", headers={"X-A": "1"}, tags=(("t", "v"),))
    everyone = Recipients(tuple(f"r{n}@x.example" for n in range(60)), (), ())
    stored = rows(mail, everyone, user_id="user-1", ids=["id-0", "id-1"], keys=["key", "id-0#2"])
    assert [row.id for row in stored] == ["id-0", "id-1"]
    assert [row.idempotency_key for row in stored] == ["key", "id-0#2"]
    assert {(row.subject, row.html, row.text, row.user_id) for row in stored} == {("s", "<p>", "", "user-1")}


def test_a_mail_without_any_body_gets_one_that_ses_takes() -> None:
    (row,) = rows(
        message(subject="only this"), Recipients(("r@x.example",), (), ()), user_id="u", ids=["id"], keys=[None]
    )
    assert row.text == "\n"


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_of_a_message_is_permanent(fault: Fault) -> None:
    reply = refusal(Unusable(fault, "detail"))
    assert 550 <= reply.code <= 553
    assert reply.enhanced.startswith("5.")


@pytest.mark.parametrize(
    ("line", "charset"),
    [
        (b'"' * 900, "us-ascii"),
        (b"&" * 900, "us-ascii"),
        (b"", "us-ascii"),
        (b"a://b.c " * 100, "us-ascii"),
        (b"\x80" * 900, "windows-1252"),
        ("\u6f22".encode("gbk") * 400, "gbk"),
        (b"\xff" * 900, "no-such-charset"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "html", "markdown"])
def test_what_is_not_measured_is_small_enough_for_the_provider_whatever_is_in_it(
    line: bytes, charset: str, kind: str
) -> None:
    head = f"From: a@example.com\r\nTo: b@x.example\r\nContent-Type: text/{kind}; charset={charset}\r\n\r\n"
    lines = (policy._SURELY_FITS - len(head)) // (len(line) + 2)
    read = parse(head.encode() + (line + b"\r\n") * lines, Limits(), "")
    texts = (read.html, read.text)
    assert sum(map(len, texts)) <= 7 * policy._SURELY_FITS
    assert composed_octets(texts, sum(len(each.content) for each in read.attachments)) <= MAX_COMPOSED_OCTETS
    assert policy.fits_provider(read, policy._SURELY_FITS)
    assert not policy.fits_provider(message(text="\u6f22" * 12_000_000), policy._SURELY_FITS + 1)
