"""A worker's side of a smart host that is a double (tests/support/smtp_double.py): its provider, and a mail for it."""

from __future__ import annotations

import uuid
from typing import Any

from config.settings import Settings
from relay.delivery.content import Content, Held
from relay.delivery.provider import Handover
from relay.delivery.smart_host import SmartHost
from relay.delivery.smtp_provider import SmtpProvider
from tests.support.smtp_double import PASSWORD, USER, SmtpDouble

MAIL = b"Subject: hello\r\n\r\nHello\r\n.\r\n..\r\nend\r\n"


def settings_of(double: SmtpDouble, ca_path: str | None, **more: Any) -> Settings:
    """Of a worker whose smart host is the double. `ca_path`: whom it trusts."""
    values: dict[str, Any] = {
        "database_url": "postgres://",
        "smarthost_host": "localhost",
        "smarthost_port": double.port,
        "smarthost_tls": "none" if double.context is None else "implicit" if double.implicit else "starttls",
        "smarthost_user": USER,
        "smarthost_password": PASSWORD,
        "smarthost_ca_path": ca_path,
        "hostname": "client.example",
    }
    return Settings(**(values | more))


def provider_of(
    double: SmtpDouble, certificate: tuple[str, str] | None = None, *, connections: int = 20, **more: Any
) -> SmtpProvider:
    """Of a worker that trusts this certificate."""
    settings = settings_of(double, certificate[0] if certificate else None, **more)
    return SmtpProvider(SmartHost(settings), connections=connections)


def handover(*to: str, content: Content | bytes = MAIL, **more: Any) -> Handover:
    """A mail for these people, ready for a provider."""
    values: dict[str, Any] = {
        "email_id": str(uuid.uuid4()),
        "sender": "ann@example.com",
        "to": to or ("to@x.example",),
        "cc": (),
        "bcc": (),
        "content": Held(content) if isinstance(content, bytes) else content,
        "region": "smtp",
        "configuration_set": None,
    }
    return Handover(**(values | more))
