"""Headers of real mail over SMTP: what is left out is said, who may be a sender, and which rows recipients get."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from scripts.database import NewApiKey
from tests.support.relay_process import Relay

Query = Callable[..., list[dict[str, Any]]]


def send(client: smtplib.SMTP, content: bytes, *, sender: str = "ann@good.example", to: Sequence[str] = ()) -> str:
    assert client.mail(sender)[0] == 250
    for address in to or ["to@x.example"]:
        assert client.rcpt(address)[0] == 250
    code, text = client.data(content)
    return f"{code} {text.decode()}"


@pytest.mark.parametrize("size", [0, 1_200_000])
def test_the_reply_says_how_many_entries_were_no_addresses(
    relay: Relay, api_key: NewApiKey, query: Query, size: int
) -> None:
    head = b"From: ann@good.example\r\nMessage-ID: <left@good.example>\r\nTo: %b\r\n\r\n" + b"x" * 70 + b"\r\n"
    body = (b"y" * 78 + b"\r\n") * (size // 80)
    plain = re.compile(r"250 2\.0\.0 Ok: queued as [0-9a-f-]{36}")
    with relay.client(api_key.token) as client:
        said = send(client, head % b"to@x.example" + body)
        assert plain.fullmatch(said)
        said = send(client, (head % b"<a@b.example%c.example>, to@x.example, Array").replace(b"left", b"two") + body)
        counted = plain.match(said)
        assert counted is not None
        assert said[counted.end() :] == " (2 entries in To, Cc and Bcc were not addresses and were left out)"
        # The same again.
        said = send(client, (head % b"<a@b.example%c.example>, to@x.example, Array").replace(b"left", b"two") + body)
        assert re.search(r"already queued as [0-9a-f-]{36} \(2 entries", said)
        said = send(client, (head % b"root@localhost, to@x.example").replace(b"left", b"one") + body)
        assert said.endswith(" (1 entry in To, Cc and Bcc was no address and was left out)")
    assert [row["to"] for row in query('SELECT "to" FROM emails')] == [["to@x.example"]] * 3


def test_only_addresses_without_a_full_stop_are_refused(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query
) -> None:
    relay = start_relay(DATABASE_URL=postgres_url, REDIS_URL=redis_url, SMTP_RELAY_RECIPIENTS="headers")
    with relay.client(api_key.token) as client:
        client.mail("ann@good.example")
        assert client.rcpt("root@localhost") == (
            553,
            b"5.1.3 Recipient must be local@domain, with a valid domain name",
        )
        client.rset()
        said = send(client, b"From: ann@good.example\r\nTo: root@localhost\r\n\r\nx")
        assert said.startswith("550 5.6.0 No recipient in To, Cc, Bcc or the envelope (1 entry")
    assert query("SELECT 1 FROM emails") == []


def test_recipients_that_ses_may_refuse_have_rows_of_their_own(relay: Relay, api_key: NewApiKey, query: Query) -> None:
    long = "l" * 65 + "@x.example"
    content = (
        f"From: ann@good.example\r\nMessage-ID: <rows@good.example>\r\nTo: a@x.example, b@under_score.example\r\n"
        f'Cc: {long}, "c c"@x.example, d@x.example\r\n\r\nx'
    ).encode()
    with relay.client(api_key.token) as client:
        assert send(client, content, to=["a@x.example", "bcc@x.example"]).startswith("250")
        assert "already queued" in send(client, content, to=["a@x.example"])
    rows = query(
        'SELECT "to", cc, bcc FROM emails ORDER BY jsonb_array_length("to") + jsonb_array_length(cc) DESC, cc::text'
    )
    assert [(row["to"], row["cc"], row["bcc"]) for row in rows] == [
        (["a@x.example"], ["d@x.example"], ["bcc@x.example"]),
        ([], ['"c c"@x.example'], []),
        ([], [long], []),
        (["b@under_score.example"], [], []),
    ]


NAME_ALONE = [
    (b"From: Cron Daemon\r\n", "ann@good.example", "250 ", "Cron Daemon <ann@good.example>"),
    (b"From: =?utf-8?q?J=C3=B6rg?=\r\n", "ann@good.example", "250 ", "=?utf-8?B?SsO2cmc=?= <ann@good.example>"),
    (b"From: Cron Daemon\r\n", "ann@evil.example", "550 5.7.1", None),
    (
        b"From: Cron Daemon\r\n",
        "<>",
        "550 5.6.0 The From header field has no address: set it to one that your API",
        None,
    ),
    (b"From: <>\r\n", "ann@good.example", "550 5.6.0", None),
    (b"From: Mail <>\r\n", "ann@good.example", "550 5.6.0", None),
    (b"From: eve@evil.example%x\r\n", "ann@good.example", "550 5.6.0", None),
    (b"From: =?utf-8?q?eve=40evil.example?=\r\n", "ann@good.example", "550 5.6.0", None),
    (b"From: a\r\nFrom: b\r\n", "ann@good.example", "550 5.6.0", None),
    (b"", "ann@good.example", "550 5.6.0", None),
]


@pytest.mark.parametrize("size", [0, 1_200_000])
def test_a_from_that_is_a_name_alone_takes_the_reverse_path(
    relay: Relay, make_api_key: Callable[..., NewApiKey], query: Query, size: int
) -> None:
    body = (b"y" * 78 + b"\r\n") * (size // 80)
    with relay.client(make_api_key(domain="good.example").token) as client:
        for field, sender, reply, stored in NAME_ALONE:
            said = send(client, field + b"To: to@x.example\r\n\r\nx\r\n" + body, sender=sender)
            assert said.startswith(reply), (field, said)
            rows = query('DELETE FROM emails RETURNING "from"')
            assert [row["from"] for row in rows] == ([stored] if stored else []), field


FOREIGN = [
    (b"Sender: eve@evil.example", False),
    (b"Sender: ann@good.example", True),
    (b"Sender: Ann <ann@GOOD.example>", True),
    (b"Resent-From: eve@evil.example", False),
    (b"Resent-Sender: eve@evil.example", False),
    (b"Sender: ann@good.example, eve@evil.example", False),
    (b"Sender: ann@good.example eve@evil.example", False),
    (b"Sender: eve@evil.example <ann@good.example>", False),
    (b'Sender: "eve@evil.example" <ann@good.example>', True),
    (b"Sender: =?utf-8?q?Eve_<eve=40evil.example>?=", False),
    (b"Sender: nobody", False),
    (b"Sender: <eve@evil.example%x>", False),
    (b"sender: ann@good.example\r\nSENDER: eve@evil.example", False),
    (b"Sender: J\xc3\xb6rg <ann@good.example>", True),
]


def test_a_restricted_key_names_no_sender_of_another_domain(
    relay: Relay, make_api_key: Callable[..., NewApiKey], api_key: NewApiKey, query: Query
) -> None:
    keys = {True: api_key, False: make_api_key(domain="good.example")}
    for free, key in keys.items():
        with relay.client(key.token) as client:
            for fields, kept in FOREIGN:
                content = b"From: ann@good.example\r\nX-Other: 1\r\n" + fields + b"\r\n\r\nx"
                assert send(client, content).startswith("250")
                (row,) = query("DELETE FROM emails RETURNING headers")
                names = {name.lower() for name in row["headers"]}
                assert "x-other" in names
                assert (names != {"x-other"}) is (kept or free), (fields, row)
