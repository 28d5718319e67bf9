"""What clients can write into the log: nothing of their mail, no key, and no line of their own making."""

from __future__ import annotations

import base64
import contextlib
import json
import smtplib
import socket
import ssl
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.database import NewApiKey
from tests.support.certificates import write_pair
from tests.support.relay_process import Relay
from tests.support.sockets import read_to_end, say_no_more

#: What must be nowhere: in a separate part for each place it is planted in.
PLANTED = "planted7d1c"
FORGED = '\r\n{"level":"info","event":"forged7d1c"}\r\n\x1b[2J\x1b]0;forged7d1c\x07'


def lines(relay: Relay) -> list[dict[str, Any]]:
    """The log; each line has to be an object by itself."""
    found = [json.loads(line) for line in relay.log.split("\n") if line]
    assert all(isinstance(line, dict) and {"timestamp", "level", "event"} <= line.keys() for line in found)
    return found


def message(**fields: str) -> bytes:
    head = {"From": f"{PLANTED} <ann@{PLANTED}.example>", "To": f"to@{PLANTED}.example", "Subject": PLANTED} | fields
    return "".join(f"{name}: {value}\r\n" for name, value in head.items()).encode() + f"\r\n{PLANTED}\r\n".encode()


def talk(relay: Relay, *commands: bytes) -> bytes:
    """All that the relay says to a client that doesn't wait."""
    with socket.create_connection((relay.host, relay.port), timeout=20) as client:
        client.sendall(b"".join(commands))
        say_no_more(client)
        return read_to_end(client)


def test_nothing_of_a_session_is_in_the_log(
    start_relay: Callable[..., Relay],
    postgres_url: str,
    redis_url: str,
    make_api_key: Callable[..., NewApiKey],
    query: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """At the most talkative level, and with each outcome that a message can have."""
    certificate, key_file = write_pair(tmp_path / "tls")
    settings = {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "SMTP_RELAY_LOG_LEVEL": "debug",
        "SMTP_RELAY_LOG_FORMAT": "json",
        "SMTP_RELAY_AUTH_DELAY_SECONDS": "0.25",
    }
    key = make_api_key(domain=f"{PLANTED}.example")
    query(
        "INSERT INTO email_suppressions (id, user_id, email, reason, suppressed_at, updated_at)"
        " VALUES (%s, %s, %s, 'manual', now(), now())",
        str(uuid.uuid4()),
        key.user_id,
        f"gone@{PLANTED}.example",
    )
    relay = start_relay(**settings)
    envelope = f"ann@{PLANTED}.example", [f"to@{PLANTED}.example"]
    wrong = f"os_live_{PLANTED}"

    def refused(raw: bytes) -> int:
        try:
            client.sendmail(*envelope, raw)
        except smtplib.SMTPResponseException as answer:
            return answer.smtp_code
        return 250

    with relay.client() as client:
        client.ehlo(PLANTED)
        client.login(PLANTED, key.token)
        assert refused(message()) == 250
        assert refused(message(**{"Message-ID": f"<{PLANTED}@x>", "Idempotency-Key": PLANTED})) == 250
        assert refused(message(**{"Message-ID": f"<{PLANTED}@x>", "Idempotency-Key": PLANTED})) == 250
        assert refused(message(**{f"X-{number}": PLANTED for number in range(20)})) == 250
        assert refused(message(From=f"eve@{PLANTED}.evil.example")) == 550
        assert refused(message(To=f"gone@{PLANTED}.example")) == 550
        assert refused(message(**{"X-OpenSend-Tag": f"{PLANTED} x={PLANTED}"})) == 550
        assert refused(message(From=f"@{PLANTED}.example")) == 550
        assert refused(message(To=f"{PLANTED}\xfc@x.example")) == 553
        client.docmd(f"RCPT TO:<{PLANTED}")
        client.docmd(PLANTED)
        client.docmd("VRFY", PLANTED)
        # What Postgres refuses, and what it doesn't answer
        query("ALTER TABLE emails ADD CONSTRAINT planted CHECK (subject <> 'refused') NOT VALID")
        assert refused(message(Subject="refused")) // 100 in (4, 5)
        query("ALTER TABLE emails RENAME TO elsewhere")
        assert refused(message()) // 100 == 4
        query("ALTER TABLE elsewhere RENAME TO emails")
    plain = base64.b64encode(f"{PLANTED}\0{PLANTED}\0{wrong}".encode())
    login = base64.b64encode(wrong.encode())
    talk(relay, b"EHLO x\r\nAUTH PLAIN " + plain + b"\r\n")
    talk(relay, b"EHLO x\r\nAUTH LOGIN\r\n" + login + b"\r\n" + login + b"\r\n" + wrong.encode() + b"\r\n")
    talk(relay, wrong.encode() + b"\n")
    talk(relay, b"EHLO x\r\nMAIL FROM:<" + PLANTED.encode() * 1000 + b">\r\n")

    secure = start_relay(**settings, SMTP_RELAY_TLS_CERT_PATH=certificate, SMTP_RELAY_TLS_KEY_PATH=key_file)
    talk(secure, b"EHLO x\r\nSTARTTLS\r\n", PLANTED.encode() * 100)
    with contextlib.suppress(ssl.SSLError), smtplib.SMTP(secure.host, secure.port, timeout=20) as client:
        client.starttls(context=ssl.create_default_context())

    time.sleep(0.3)
    for each in (relay, secure):
        assert len(lines(each)) > 3
        text = each.log.lower()
        for secret in (PLANTED, key.token, key.token.removeprefix("os_live_"), login.decode(), plain.decode()):
            assert secret.lower() not in text, [line for line in text.split("\n") if secret.lower() in line][:3]
        assert "os_live_" not in text
        assert "@" not in text
    assert any(line["event"] == "headers_dropped" for line in lines(relay))


def test_log_lines_are_written_by_the_logger_alone(
    start_relay: Callable[..., Relay], postgres_url: str, redis_url: str, api_key: NewApiKey
) -> None:
    """Line ends and escape sequences in everything that a client chooses, in both forms of the log."""
    for form in ("json", "text"):
        relay = start_relay(
            DATABASE_URL=postgres_url,
            REDIS_URL=redis_url,
            SMTP_RELAY_LOG_LEVEL="debug",
            SMTP_RELAY_LOG_FORMAT=form,
            SMTP_RELAY_AUTH_DELAY_SECONDS="0.25",
        )
        forged = FORGED.encode()
        good = base64.b64encode(b"\0" + forged + b"\0" + api_key.token.encode())
        bad = base64.b64encode(b"\0" + forged + b"\0" + forged)
        login = b"EHLO x\r\nAUTH PLAIN " + good + b"\r\n"
        names = b"".join(b"X-\x1b[2Jforged7d1c%d: y\r\nX-forged7d1c%d\xc2\x85: y\r\n" % (n, n) for n in range(20))
        raw = b"From: ann@example.com\r\nTo: to@x.example\r\n" + names + b"\r\nx\r\n.\r\n"
        talk(relay, b"EHLO " + forged)
        talk(relay, b"EHLO x\x1b[2Jforged7d1c\x07\r\nHELO \x9b2Jforged7d1c\r\n")
        talk(relay, b"EHLO x\r\nAUTH PLAIN " + bad + b"\r\n")
        talk(relay, b"EHLO x\r\nAUTH " + forged + b"\r\n")
        talk(relay, login, b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n" + raw + b"QUIT\r\n")
        talk(relay, login, b'MAIL FROM:<"\x1b[2Jforged7d1c"@x.example>\r\nRCPT TO:<\x1b[2J@x>\r\n')
        time.sleep(0.3)
        log = relay.log
        assert "\x1b" not in log
        assert "\r" not in log
        assert "\x07" not in log
        assert "\x85" not in log
        assert "\x9b" not in log
        assert not any(line.startswith('{"level"') for line in log.split("\n"))
        if form == "json":
            assert "forged" not in "".join(line["event"] for line in lines(relay))
