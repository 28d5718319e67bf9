"""How much memory a child takes for each kind of content. Run as a program: `child_memory.py URL SIZE pieces|whole`.

Prints a JSON object: kind → octets at most while it parses and what was set aside for that, octets at most from then on
and what the child said it uses. The figures are beyond what the process had before, as the kernel counts them.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

from psycogreen.gevent import patch_psycopg

patch_psycopg()

import base64
import hashlib
import json
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from config.settings import RecipientRule, Settings
from relay.core.records import ApiKey
from relay.intake import footprint
from relay.intake.bulk_protocol import Reading, Uses, decode_report, encode_head, receive_message, send_request
from relay.mail import Message
from relay.process import bulk_child
from relay.smtp.spool import Body
from relay.smtp.submission import Login, Submission, Verdict
from scripts.database import create_api_key

_HEADER: Final = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: Large\r\nMIME-Version: 1.0\r\n"
_MIXED: Final = (
    b"Content-Type: multipart/mixed; boundary=bb\r\n\r\n--bb\r\nContent-Type: text/plain\r\n\r\nHello\r\n--bb\r\n"
)
_NOISE: Final = random.Random(1).randbytes(57)


def _text(line: bytes, fields: bytes = b"Content-Type: text/plain; charset=utf-8\r\n", first: bytes = b"") -> Any:
    return _HEADER + fields + b"\r\n" + first, line, b""


def _attached(line: bytes, fields: bytes) -> Any:
    return _HEADER + _MIXED + fields + b"\r\n", line, b"\r\n--bb--\r\n"


_PDF: Final = b"Content-Type: application/pdf; name=a.pdf\r\n"
_BASE64: Final = b"Content-Transfer-Encoding: base64\r\n"
_QP: Final = b"Content-Transfer-Encoding: quoted-printable\r\n"
_EMOJI: Final = "\U0001f600".encode()
#: What comes before, what is repeated, and what comes behind it.
KINDS: Final[dict[str, tuple[bytes, bytes, bytes]]] = {
    "ascii": _text(b"z" * 70 + b"\r\n"),
    "control characters": _text(b"\x01" * 998 + b"\r\n"),
    "quotes and backslashes": _text(b'"\\' * 300 + b"\r\n"),
    "empty lines": _text(b"\r\n"),
    "one emoji": _text(b"z" * 70 + b"\r\n", first=_EMOJI),
    "emoji": _text(_EMOJI * 200 + b"\r\n"),
    "latin-1": _text(b"\xe9" * 200 + b"\r\n", b"Content-Type: text/plain; charset=iso-8859-1\r\n"),
    "windows-1252": _text(b"\x80" * 200 + b"\r\n", b"Content-Type: text/plain; charset=windows-1252\r\n"),
    "gbk": _text("漢".encode("gbk") * 200 + b"\r\n", b"Content-Type: text/plain; charset=gbk\r\n"),
    "iso-2022-jp": _text("漢字\r\n".encode("iso2022_jp"), b"Content-Type: text/plain; charset=iso-2022-jp\r\n"),
    "quoted-printable": _text(b"=C3=A9" * 12 + b"=\r\n", b"Content-Type: text/html; charset=utf-8\r\n" + _QP),
    "base64 text": _text(base64.b64encode(b"z" * 53 + _EMOJI) + b"\r\n", b"Content-Type: text/plain\r\n" + _BASE64),
    "html with links": _text(b'<a href="https://x.example/?a=1&amp;b=2">x</a>\r\n', b"Content-Type: text/html\r\n"),
    "base64 attachment": _attached(base64.b64encode(_NOISE) + b"\r\n", _PDF + _BASE64),
    "damaged base64": _attached(b"*" + base64.b64encode(_NOISE) + b"\r\n", _PDF + _BASE64),
    "binary attachment": _attached(_NOISE + b"\r\n", _PDF),
    "a thousand recipients": _attached(base64.b64encode(_NOISE) + b"\r\n", _PDF + _BASE64),
    "parts": _attached(b"z" * 40_000 + b"\r\n--bb\r\nContent-Type: text/plain\r\n\r\n", b""),
}


def message(kind: str, size: int) -> bytes:
    """A message of that kind and about so many octets."""
    before, line, behind = KINDS[kind]
    return before + line * (size // len(line)) + behind


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _measure(settings: Settings, submission: Submission) -> list[int]:
    """Peaks of parsing and of the rest, what was set aside, and what the child said."""
    ours, theirs = socket.socketpair()
    results, results_end = os.pipe()
    size = submission.body.size
    if monkey.get_original("os", "fork")() == 0:
        ours.close()
        before = _status("VmRSS")
        _forget_peak()
        peaks: list[int] = []
        after_parsing: Callable[[Message, int], int] = footprint.after_parsing

        def parsed(message: Message, size: int) -> int:
            peaks.append(_status("VmHWM") - before)
            _forget_peak()
            return after_parsing(message, size)

        footprint.after_parsing = parsed
        bulk_child.serve(settings, theirs.detach())
        os.write(results_end, json.dumps([*peaks, _status("VmHWM") - before]).encode())
        os._exit(0)
    theirs.close()
    send_request(ours, encode_head(submission, Reading.WHOLE), submission.body.fileno())
    uses = 0
    while (document := receive_message(ours)) is not None:
        report = decode_report(document)
        if isinstance(report, Uses):
            uses = report.octets
        if isinstance(report, Verdict):
            assert report.reply.code == 250, report
            break
    ours.close()
    parsing, storing = json.loads(os.read(results, 1000))
    return [parsing, footprint.before_parsing(size), storing, uses]


def main(url: str, size: int) -> None:
    """Measures each kind."""
    key = create_api_key(url)
    settings = Settings(database_url=url, redis_url=None, dedupe_seconds=0)
    login = Login(hashlib.sha256(key.token.encode()).hexdigest(), ApiKey(key.id, key.user_id, "full_access", None))
    measured = {}
    for kind in KINDS:
        with tempfile.TemporaryFile() as file:
            file.write(message(kind, size))
            file.flush()
            body = Body.from_file(os.dup(file.fileno()))
            many = 1000 if kind == "a thousand recipients" else 1
            recipients = tuple(f"to{number}@x.example" for number in range(many))
            submission = Submission(login, recipients, RecipientRule.ENVELOPE, body, "x")
            measured[kind] = _measure(settings, submission)
            body.close()
    print(json.dumps(measured))


if __name__ == "__main__":
    if sys.argv[3] == "pieces":
        footprint.IN_ONE_PIECE = 0  # type: ignore[misc]
    main(sys.argv[1], int(sys.argv[2]))
