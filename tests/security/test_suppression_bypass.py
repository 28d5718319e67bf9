"""A suppressed mailbox gets nothing, however its address is spelt, in the header or in the envelope."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from config.settings import RecipientRule
from relay.intake import policy
from relay.mail import parse
from relay.smtp.path import parse_path
from scripts.database import NewApiKey
from tests.support.relay_process import Relay

GONE = "gone+news@xn--bcher-kva.example"
#: Values of To, Cc or Bcc that mean the suppressed mailbox to the server that delivers.
IN_HEADER = [
    "gone+news@b\u00fccher.example",
    "Gone+News@B\u00dcCHER.Example",
    "GONE+NEWS@XN--BCHER-KVA.EXAMPLE",
    "gone+news@bu\u0308cher.example",
    "gone+news@b\u00fccher\u3002example",
    "gone+news@b\uff55\u0308cher.example",
    "gone+news@b\u00fccher.example.",
    " \t gone+news@b\u00fccher.example \t",
    "\r\n gone+news@b\u00fccher.example",
    "<gone+news@b\u00fccher.example>",
    "< gone+news@b\u00fccher.example >",
    "'gone+news@b\u00fccher.example'",
    '"gone+news"@b\u00fccher.example',
    '"go\\ne+news"@b\u00fccher.example',
    '"GONE+news" @ b\u00fccher.example',
    '"gone+news@xn--bcher-kva.example"',
    '"gone+news@xn--bcher-kva.example" <gone+news@xn--bcher-kva.example>',
    '"other@x.example" <gone+news@xn--bcher-kva.example>',
    "(other@x.example) gone+news@xn--bcher-kva.example",
    "gone+news@xn--bcher-kva.example (other@x.example)",
    "gone+news(comment)@xn--bcher-kva.example",
    "gone+news@(comment)xn--bcher-kva.example",
    "gone+news@xn--bcher-kva(comment).example",
    "gone+news\r\n @xn--bcher-kva.example",
    "list: gone+news@xn--bcher-kva.example;",
    "list: other@x.example, gone+news@xn--bcher-kva.example;, third@x.example",
    "undisclosed-recipients:;, gone+news@xn--bcher-kva.example",
    "other@x.example; gone+news@xn--bcher-kva.example",
    "other@x.example,,, ,gone+news@xn--bcher-kva.example,",
    "other@x.example\r\n\t,gone+news@xn--bcher-kva.example",
    "<@route.example,@other.example:gone+news@xn--bcher-kva.example>",
    "mailto:gone+news@xn--bcher-kva.example",
    "=?utf-8?q?gone?= <gone+news@xn--bcher-kva.example>",
    "=?utf-8?q?other=40x.example?= <gone+news@xn--bcher-kva.example>",
    "=?utf-8?q?a,_b?= <other@x.example>, gone+news@xn--bcher-kva.example",
    "gone+news@xn--bcher-kva.example\0",
    "\u00a0gone+news@xn--bcher-kva.example\u00a0",
    "gone+news@b\u00fccher.example\u3002",
    "gone+news@xn--bcher-kva.example\uff0e",
    "gone+news@xn--bcher-kva.example\uff61",
    "gone+news@xn--bcher-kva.example.\u00ad",
    "gone+news@xn--bcher-kva.example\u00ad.",
    '"broken <other@x.example>, gone+news@xn--bcher-kva.example',
    "other@x.example\nCc: gone+news@xn--bcher-kva.example",
]
#: Arguments of RCPT TO.
IN_ENVELOPE = [
    "<gone+news@b\u00fccher.example>",
    "<Gone+News@B\u00dcCHER.Example>",
    "<GONE+NEWS@XN--BCHER-KVA.EXAMPLE>",
    "<gone+news@b\u00fccher.example.>",
    "<gone+news@b\u00fccher\u3002example>",
    "<gone+news@b\u00fccher.example\u3002>",
    "<gone+news@xn--bcher-kva.example.\u00ad>",
    "< gone+news@xn--bcher-kva.example >",
    "gone+news@xn--bcher-kva.example",
    '<"gone+news"@xn--bcher-kva.example>',
    '<"\\g\\o\\n\\e+news"@xn--bcher-kva.example>',
    "<@route.example:gone+news@xn--bcher-kva.example>",
    "<gone+news@xn--bcher-kva.example> NOTIFY=NEVER",
]


def recipients(raw: str, *envelope: str) -> tuple[str, ...]:
    """Whose suppression is asked for, which is at once who would get it."""
    return policy.recipients_of(parse(raw.encode()), envelope, RecipientRule.MERGE).mailboxes()


@pytest.mark.parametrize("field", ["To", "Cc", "Bcc"])
@pytest.mark.parametrize("value", IN_HEADER)
def test_a_spelling_in_the_header_is_the_mailbox(value: str, field: str) -> None:
    message = f"From: ann@example.com\r\n{field}: {value}\r\n\r\nx"
    assert GONE in recipients(message)


@pytest.mark.parametrize("value", ["gone+news@xn--bcher-kva.exam\u00adple", "gone+news\0@xn--bcher-kva.example"])
def test_an_address_with_an_invisible_or_a_control_character_inside_is_none(value: str) -> None:
    """It is left out and counted: it may be two words that were put together."""
    assert recipients(f"From: ann@example.com\r\nTo: {value}\r\n\r\nx") == ()


@pytest.mark.parametrize("line", ["TO: {}", "tO:\t{}", "To : {}", "X-Own: y\nTo: {}", "Cc: a@x.example\r\nCC: {}"])
def test_a_spelling_of_the_field_is_the_field(line: str) -> None:
    assert GONE in recipients(f"From: ann@example.com\r\n{line.replace('{}', GONE)}\r\n\r\nx")


@pytest.mark.parametrize("argument", IN_ENVELOPE)
def test_a_spelling_in_the_envelope_is_a_path(argument: str) -> None:
    assert parse_path(argument) is not None or argument.endswith("NEVER")


def test_no_header_of_its_own_reaches_anybody() -> None:
    """What could make recipients once more, were it handed on."""
    names = ("Resent-To", "Resent-Cc", "Resent-Bcc", "Apparently-To", "X-Bcc", "Disposition-Notification-To")
    raw = "".join(f"{name}: {GONE}\r\n" for name in names)
    message = parse(f"From: ann@example.com\r\nTo: to@x.example\r\n{raw}\r\nx".encode())
    assert not {"to", "cc", "bcc", "resent-bcc"} & set(map(str.lower, message.headers))
    assert message.to + message.cc + message.bcc == ("to@x.example",)


def test_end_to_end(relay: Relay, api_key: NewApiKey, query: Callable[..., list[dict[str, Any]]]) -> None:
    """Every spelling is refused, and the ones that are other people's get in."""
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
        " VALUES (%s, %s, %s, 'complained', now(), now())",
        str(uuid.uuid4()),
        api_key.user_id,
        GONE,
    )
    sent = 0

    def send(argument: str, value: str) -> int:
        nonlocal sent
        sent += 1
        if sent % 15 == 0:  # so many errors end a connection
            client.close()
            client.connect(relay.host, relay.port)
            client.ehlo("client.example")
            client.login("any", api_key.token)
        client.command_encoding = "utf-8"
        assert client.docmd("MAIL FROM:<ann@example.com> SMTPUTF8")[0] == 250
        code, _ = client.docmd(f"RCPT TO:{argument}")
        if code != 250:
            client.docmd("RSET")
            return code
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.send(f"From: ann@example.com\r\nTo: {value}\r\n\r\nx\r\n.\r\n".encode())
        return client.getreply()[0]

    with relay.client(api_key.token) as client:
        for value in IN_HEADER:
            assert send("<to@x.example>", value) == 550, value
        for argument in IN_ENVELOPE:
            assert send(argument, "to@x.example") in (550, 501, 553, 555), argument
        assert query("SELECT 1 FROM emails") == []
        for other in ("gone@xn--bcher-kva.example", "gone+news@bucher.example", "gone+new@xn--bcher-kva.example"):
            assert send(f"<{other}>", other) == 250
