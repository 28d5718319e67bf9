"""A strict double of Amazon SES (API version 2), as a program.

    python -m scripts.services.ses_double HOST PORT FOLDER [NAMED]

A double because the real service can't be had here. It refuses what SES's documentation says that SES refuses (sizes,
line lengths, octets above 127, fields twice, extensions, recipients, a missing signature), and keeps what it took as
FOLDER/<number>.json and .eml; as NAMED/<id of the row>.eml too, where that folder is given. What it refused it prints,
and why.

POST /control with {"answers": [...]} sets how the next calls are answered, one entry each:
{"status": 400, "code": "MessageRejected", "message": "…"} · {"silent": true} (nothing, without the mail) ·
{"lost": true} (takes the mail, closes without a word) · {"seconds": 2} (answers late) · {} (as usual) ·
{"raw": "HTTP/1.1 …"} (takes the mail, answers with these octets and closes).

POST /control with {"notify": URL} makes it tell what becomes of each mail from then on, as SES does by way of SNS, to
recipients of the mailbox simulator as to all others: see `scripts.services.sns_double`. The answer has `cafile` and
`port` of the host of SNS that it imitates.

{"ledger": {…}} begins a new `ses_ledger.Ledger` with these fields: rate, quota, refusals at random. {"account": {…}}
changes what GetAccount says, or with {"status": 403, "code": "…"} refuses it. {"seconds": 7} answers late, {"raw":
"HTTP/1.1 …", "pause": 0.5} with these octets, one each half second if wanted. GET /ledger has the ledger's figures.
{"forget": true}: calls that have come, and are not answered yet, leave no mail. {} changes nothing. The answer to all
of these has `unused`: how many of the answers no call has come for yet.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch services.ses_double instead.")

import binascii
import contextlib
import email
import email.policy
import json
import re
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

from relay.core.provider_limits import MAX_COMPOSED_OCTETS, MAX_RECIPIENTS, ONCE_ONLY_FIELDS, refused_extension
from scripts.services.ses_ledger import Ledger
from scripts.services.ses_request import Account, Answer, Control, SendEmail

if TYPE_CHECKING:
    from scripts.services.sns_double import Notifier

SEND: Final = "/v2/email/outbound-emails"
ACCOUNT: Final = "/v2/email/account"
#: Recipients a second of an account whose ledger has no rate.
ANY_RATE: Final = 10_000.0
_ROW_ID: Final = re.compile(r"[0-9a-f-]{36}")


class Refused(Exception):
    """SES would not take this mail. The text is the answer's."""


class Mailbox:
    """What was taken, and how the next calls are answered."""

    def __init__(self, folder: Path, named: Path | None = None) -> None:
        self._folder = folder
        self._named = named
        self._lock = threading.Lock()
        self._count = 0
        #: How often it was told to forget.
        self.era = 0
        self.notifier: Notifier | None = None
        self.answers: list[Answer] = []
        self.ledger = Ledger(rate=0.0)
        self.account: Account = {}
        #: How often GetAccount was called.
        self.asked = 0
        for each in (folder, *([named] if named else [])):
            each.mkdir(parents=True, exist_ok=True)

    def control(self, document: Control) -> dict[str, object]:
        """Carries out a POST to /control; its answer."""
        if document.get("forget"):
            with self._lock:
                self.era += 1
        if "answers" in document:
            self.answers = list(document["answers"])
        if "ledger" in document:
            self.ledger = Ledger(**document["ledger"])
        if "account" in document:
            self.account = document["account"]
        if "notify" in document:
            return self.notify(document["notify"])
        return {"unused": len(self.answers)}

    def next_answer(self) -> Answer:
        """How to answer the call that has come."""
        with self._lock:
            return self.answers.pop(0) if self.answers else {}

    def refusal(self, came: float, recipients: int) -> str:
        """What the account's ledger says against a mail. `came`: when its request did (time.monotonic())."""
        with self._lock:
            return self.ledger.take(came, recipients)

    def keep(self, request: SendEmail, octets: bytes, era: int) -> str:
        """Keeps a mail, unless it was told to forget since `era`; its MessageId."""
        with self._lock:
            self._count += 1
            number = self._count
            message_id = f"{number:016x}-00000000-0000-4000-8000-000000000000-000000"
            if era != self.era:
                return message_id
            about: SendEmail = {**request, "MessageId": message_id}
            about.pop("Content", None)
            (self._folder / f"{number:06}.eml").write_bytes(octets)
            self._name(f"{number:06}.eml", request)
            written = self._folder / f".{number:06}.json"
            written.write_text(json.dumps(about))
            written.rename(self._folder / f"{number:06}.json")
        if self.notifier is not None:
            self.notifier.tell(about, octets)
        return message_id

    def _name(self, file: str, request: SendEmail) -> None:
        ids = [str(tag["Value"]) for tag in request.get("EmailTags", ()) if tag["Name"] == "X-Entity-ID"]
        if self._named is not None and ids and _ROW_ID.fullmatch(ids[0]):
            named = self._named / f"{ids[0]}.eml"
            named.unlink(missing_ok=True)  # a mail may be sent twice
            named.hardlink_to(self._folder / file)

    def notify(self, url: str) -> dict[str, object]:
        """Tells what becomes of mails from now on; who is to be believed."""
        from scripts.services.sns_double import Notifier  # noqa: PLC0415 - cryptography, for those who want it

        if self.notifier is None:
            self.notifier = Notifier(self._folder.parent)
        self.notifier.url = url
        return {"cafile": str(self.notifier.sns.cafile), "port": self.notifier.sns.port}


def check(request: SendEmail) -> bytes:
    """The octets of the mail that a SendEmail carries. Raises Refused."""
    try:
        octets = b64decode(request["Content"]["Raw"]["Data"], validate=True)
    except (KeyError, TypeError, binascii.Error):
        raise Refused("Content.Raw.Data is missing or no Base64") from None
    destination = request.get("Destination") or {}
    recipients = [address for addresses in destination.values() for address in addresses]
    if not recipients:
        raise Refused("no recipients")
    if len(recipients) > MAX_RECIPIENTS:
        raise Refused("Recipient count exceeds 50")
    for address in recipients:
        local, _, domain = address.rpartition("@")
        if not local or not domain or not address.isascii() or " " in address or "." not in domain or "_" in domain:
            raise Refused("a recipient is malformed")
        if len(local) > 64:
            raise Refused("a recipient's local part is too long")
    if len(octets) > MAX_COMPOSED_OCTETS:
        raise Refused("Message length is more than 41943040 bytes long")
    check_content(octets)
    return octets


def check_content(octets: bytes) -> None:
    """What SES asks of raw content. Raises Refused."""
    if not octets.isascii():
        raise Refused("octets above 127")
    if b"\r\n\r\n" not in octets:
        raise Refused("no empty line between header and body")
    if b"\n" in octets.replace(b"\r\n", b"") or b"\r" in octets.replace(b"\r\n", b"") or b"\x00" in octets:
        raise Refused("a line that does not end with CRLF, or a NUL")
    longest = max(map(len, octets.split(b"\r\n")))
    if longest > 998:
        raise Refused(f"a line of {longest} octets")
    message = email.message_from_bytes(octets, policy=email.policy.default)
    names = [name.lower() for name in message.keys()]  # noqa: SIM118 - fields, of which some stand twice
    for name in set(names):
        if names.count(name) > 1 and (name in ONCE_ONLY_FIELDS or name.startswith("content-")):
            raise Refused(f"Duplicate header '{name}'.")
        if name.startswith("x-ses-") or name == "bcc":
            raise Refused(f"a field {name}, which steers SES or names hidden recipients")
    if names.count("from") != 1:
        raise Refused("Missing required header 'From'.")
    for part in message.walk():
        filename = part.get_filename()
        if filename and refused_extension(filename):
            raise Refused("Illegal filename")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    mailbox: Mailbox

    def do_GET(self) -> None:
        if self.path == ACCOUNT:
            self.mailbox.asked += 1
            said = self.mailbox.account
            time.sleep(said.get("seconds", 0.0))
            if "raw" in said:
                self._write(said["raw"].encode("latin-1"), said.get("pause", 0.0))
                return
            if "status" in said:
                self._answer(said["status"], {"message": ""}, said["code"])
                return
            quota = self.mailbox.ledger.quota(ANY_RATE)
            account = {"SendQuota": quota, "SendingEnabled": True, "EnforcementStatus": "HEALTHY"}
            self._answer(200, account | {"ProductionAccessEnabled": True} | said)
        elif self.path == "/ledger":
            self._answer(200, self.mailbox.ledger.figures() | {"asked": self.mailbox.asked})
        else:
            self._answer(404, {"message": "not found"})

    def do_POST(self) -> None:
        # Before the mail is read and looked at, which takes longer where many come at a time.
        came = time.monotonic()
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            self._answer(200, self.mailbox.control(document))
            return
        if self.path != SEND:
            self._answer(404, {"message": "not found"}, "NotFoundException")
            return
        era = self.mailbox.era
        how = self.mailbox.next_answer()
        if how.get("silent"):
            self.close_connection = True
            return
        time.sleep(how.get("seconds", 0))
        if "status" in how:
            self._answer(how["status"], {"message": how.get("message", "")}, how.get("code", ""))
            return
        if "AWS4-HMAC-SHA256 Credential=" not in self.headers.get("Authorization", ""):
            self._answer(403, {"message": "Missing Authentication Token"}, "MissingAuthenticationTokenException")
            return
        try:
            octets = check(document)
        except Refused as refused:
            print(f"refused: {refused}", flush=True)
            self._answer(400, {"message": str(refused)}, "BadRequestException")
            return
        text = self.mailbox.refusal(came, sum(map(len, document["Destination"].values())))
        if text:
            self._answer(400 if "quota" in text else 429, {"message": text}, "ThrottlingException")
            return
        message_id = self.mailbox.keep(document, octets, era)
        if how.get("lost"):
            self.close_connection = True
            return
        if "raw" in how:
            self.close_connection = True
            self.wfile.write(how["raw"].encode("latin-1"))
            return
        self._answer(200, {"MessageId": message_id})

    def _write(self, octets: bytes, pause: float) -> None:
        """Writes octets, one after the other where there is a pause (seconds), and closes."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            for piece in [octets[at : at + 1] for at in range(len(octets))] if pause else [octets]:
                self.wfile.write(piece)
                time.sleep(pause)

    def _answer(self, status: int, document: Mapping[str, object], code: str = "") -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        if code:
            self.send_header("x-amzn-ErrorType", f"{code}:http://internal.amazon.com/coral/")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Calls are no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main(host: str, port: str, folder: str, named: str | None = None) -> None:
    """Serves until it is ended."""
    _Handler.mailbox = Mailbox(Path(folder), None if named is None else Path(named))
    _Server((host, int(port)), _Handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
