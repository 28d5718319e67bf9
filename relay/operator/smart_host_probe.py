"""Could the smart host be handed mail, from here, with these settings? A session without a mail.

It goes the way that mails go: connection, TLS, EHLO, AUTH; then NOOP and QUIT. No text of the host's is printed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Final

from config.settings import Settings
from relay.core.provider_limits import MAX_COMPOSED_OCTETS
from relay.delivery.smart_host import NotOpened, SmartHost
from relay.delivery.smtp_client import ConnectionBroken, SmtpConnection
from relay.operator.finding import FAIL, OK, WARN, Finding
from relay.operator.preflight import is_loopback

#: Seconds for the answer to QUIT.
_QUIT_SECONDS: Final = 1.0
#: What is named of what a host offers: what is used.
_EXTENSIONS: Final = ("PIPELINING", "SIZE")
#: Codes of relay.delivery.smart_host -> what we say. Digits are the host's own reply.
_CAUSES: Final[Mapping[str, str]] = {
    "NoStartTls": "it does not offer STARTTLS, which SMTP_RELAY_SMARTHOST_TLS asks for",
    "NoAuth": "it offers neither AUTH PLAIN nor AUTH LOGIN, and SMTP_RELAY_SMARTHOST_PASSWORD is set",
    "SSLCertVerificationError": (
        "its TLS certificate can't be verified; for a private certificate authority, set SMTP_RELAY_SMARTHOST_CA_PATH"
    ),
    "SSL.*|ValueError|ConnectionAbortedError": "TLS could not be established",
    "ConnectionRefusedError": "the connection was refused",
    "gaierror|UnicodeError": "its host name can't be resolved",
    "ENETUNREACH|EHOSTUNREACH": "there is no route to its address",
    "TimeoutError": "it did not answer in time",
    "ConnectionResetError|ConnectionClosed|BrokenPipeError": "it closed the connection",
    "NotSmtp|EndlessReply|TextBeforeTls|SaidUnasked": "the server there does not speak SMTP",
}


def findings(settings: Settings, *, seconds: float) -> Iterator[Finding]:
    """What is wrong with the smart host, a line each; or one that says that nothing is."""
    until = time.monotonic() + seconds
    host = SmartHost(settings)
    place = f"{host.host}:{host.port}"
    try:
        connection = host.open(until)
    except NotOpened as unopened:
        yield Finding(FAIL, "smtp", f"{place}: {_said(unopened)}")
        return
    version = connection.tls_version or "no TLS"
    try:
        reply = connection.ask("NOOP", until)
        refused = "" if reply.kind == 2 else f"it answers {reply.codes} to NOOP"
    except ConnectionBroken as broken:
        refused = _cause(broken.code)
    connection.quit(min(until, time.monotonic() + _QUIT_SECONDS))
    if refused:
        yield Finding(FAIL, "smtp", f"{place}: {refused}")
        return
    yield from _doubts(settings, connection, place)
    offered = ", ".join(name for name in _EXTENSIONS if name in connection.extensions) or "no extension"
    yield Finding(OK, "smtp", f"{place}: takes mail ({version}; {offered})")


def _doubts(settings: Settings, connection: SmtpConnection, place: str) -> Iterator[Finding]:
    if settings.smarthost_tls == "none" and not is_loopback(settings.smarthost_host or ""):
        yield Finding(WARN, "smtp", f"{place}: mails travel in the clear (SMTP_RELAY_SMARTHOST_TLS)")
    size = connection.size_limit
    if 0 < size < MAX_COMPOSED_OCTETS:
        yield Finding(WARN, "smtp", f"{place}: takes {size} octets at most: larger mails fail")


def _said(unopened: NotOpened) -> str:
    if not unopened.code[:1].isdigit():
        return _cause(unopened.code)
    if unopened.kind == "credentials":
        return f"user or password is refused ({unopened.code})"
    if unopened.kind == "tls":
        return f"STARTTLS is refused ({unopened.code})"
    return f"it accepts no mail at present ({unopened.code})"


def _cause(code: str) -> str:
    return next((meaning for pattern, meaning in _CAUSES.items() if re.fullmatch(pattern, code)), code)
