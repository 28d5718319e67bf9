"""One mail by `smtplib`: composed, sent, and its reply read."""

from __future__ import annotations

import re
import smtplib
from email.message import EmailMessage


def compose(**fields: str) -> EmailMessage:
    """A small mail; `fields` are its headers, with `_` for `-`, and its `text`."""
    mail = EmailMessage()
    headers = {"From": "Ann <ann@example.com>", "To": "to@x.example", "Subject": "Hello"} | {
        name.replace("_", "-"): value for name, value in fields.items() if name != "text"
    }
    for name, value in headers.items():
        if value:
            mail[name] = value
    mail.set_content(fields.get("text", "Hi there\n"))
    return mail


def send(client: smtplib.SMTP, mail: EmailMessage | bytes, *recipients: str) -> tuple[int, str]:
    """One transaction; the final reply."""
    assert client.mail("ann@example.com")[0] == 250
    for recipient in recipients or ("to@x.example",):
        assert client.rcpt(recipient)[0] == 250
    code, text = client.data(
        mail if isinstance(mail, bytes) else mail.as_bytes(policy=mail.policy.clone(linesep="\r\n"))
    )
    return code, text.decode()


def queued_id(answer: tuple[int, str]) -> str:
    """The id of the row. Raises AssertionError where the mail was not accepted."""
    match = re.fullmatch(r"2\.0\.0 Ok: (?:already )?queued as ([0-9a-f-]{36})", answer[1])
    assert answer[0] == 250, answer
    assert match is not None, answer
    return match[1]
