"""A stand-in for SES that takes mails at once, or after so many milliseconds: SES itself runs elsewhere.

The strict double (scripts.services.ses_double), which the tests talk to, parses each mail, writes it to a file, and
needs more CPU for it than the worker. This one reads each call, has a look at its signature, its Base64 and its tag,
counts what it is given, and answers as SES does; it keeps the ids alone. An account's rate and its refusals at random
are those of the strict one (scripts.services.ses_ledger). Run as a separate process:

    python -m scripts.benchmark.swiftses HOST PORT MILLISECONDS
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.swiftses instead.")

import sys
import time
import urllib.request
from pathlib import Path
from typing import Final

import gevent
import gevent.socket
from gevent.server import StreamServer
from orjson import JSONDecodeError, dumps, loads

from relay.core.allowance import LARGE
from scripts.services import Server
from scripts.services.ses_ledger import Ledger
from scripts.services.ses_request import Figures

_ANSWER: Final = (
    b"HTTP/1.1 %s\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"x-amzn-RequestId: 9f2d3c1e-5a4b-5f6d-8e7c-0b1a2c3d4e5f\r\nconnection: keep-alive\r\n\r\n%s"
)

_THROTTLED: Final = b"429 Too Many Requests\r\nx-amzn-ErrorType: ThrottlingException"


class SwiftSes(Server):
    """The stand-in as a process. `milliseconds`: how long each answer takes."""

    name = "the swift SES"

    def __init__(self, directory: Path, milliseconds: int = 0) -> None:
        super().__init__(directory)
        self._milliseconds = milliseconds

    @property
    def client_environment(self) -> dict[str, str]:
        """What a worker needs in its environment so that its mails come here."""
        return {
            "AWS_ENDPOINT_URL_SESV2": f"http://{self.host}:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def command(self) -> list[str]:
        """See Server."""
        arguments = [self.host, str(self.port), str(self._milliseconds)]
        return [sys.executable, "-m", "scripts.benchmark.swiftses", *arguments]

    def working_directory(self) -> Path:
        """See Server."""
        return Path(__file__).resolve().parents[2]

    def answers(self) -> bool:
        """See Server."""
        try:
            return self.mails() >= (0, 0)
        except OSError:
            return False

    def mails(self) -> tuple[int, int]:
        """How many mails it has been given so far, and how many different ones."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/", timeout=10) as answer:
            mails, different = loads(answer.read())
        return mails, different

    def has(self, **ledger: float) -> None:
        """Begins a ledger (`ses_ledger.Ledger`) with these fields; there is none before."""
        urllib.request.urlopen(f"http://{self.host}:{self.port}/ledger", dumps(ledger), timeout=10).close()

    def ledger(self) -> Figures:
        """What the ledger has counted."""
        return self._figures("ledger")

    def octets(self) -> Figures:
        """The same of mails above LARGE octets, for which `recipients` and `most` are octets."""
        return self._figures("octets")

    def _figures(self, name: str) -> Figures:
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/{name}", timeout=10) as answer:
            figures: Figures = loads(answer.read())
            return figures


class _Service:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._mails = 0
        self._ids: set[str] = set()
        self._ledger: Ledger | None = None
        self._octets = Ledger()

    def serve(self, sock: gevent.socket.socket, _address: object) -> None:
        """One connection: a request after the other."""
        with sock.makefile("rb") as stream:
            while line := stream.readline():
                came = time.monotonic()
                length, signed = 0, False
                while (field := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = field.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                    elif name.lower() == b"authorization":
                        signed = value.strip().startswith(b"AWS4-HMAC-SHA256 Credential=")
                if line.startswith(b"GET / "):
                    sock.sendall(_answer(b"200 OK", dumps([self._mails, len(self._ids)])))
                elif line.startswith(b"GET /ledger "):
                    sock.sendall(_answer(b"200 OK", dumps((self._ledger or Ledger()).figures() | {"asked": 0})))
                elif line.startswith(b"GET /octets "):
                    sock.sendall(_answer(b"200 OK", dumps(self._octets.figures() | {"asked": 0})))
                elif line.startswith(b"POST /ledger "):
                    self._ledger = Ledger(**loads(stream.read(length)))
                    sock.sendall(_answer(b"200 OK", b"{}"))
                elif line.startswith(b"GET "):
                    quota = (self._ledger or Ledger()).quota(1e6)
                    account = {"SendQuota": quota, "SendingEnabled": True, "EnforcementStatus": "HEALTHY"}
                    sock.sendall(_answer(b"200 OK", dumps(account | {"ProductionAccessEnabled": True})))
                else:
                    content = stream.read(length)
                    if self._seconds:
                        gevent.sleep(self._seconds)
                    sock.sendall(self._take(content, came, signed=signed))

    def _take(self, call: bytes, came: float, *, signed: bool) -> bytes:
        try:
            document = loads(call)
            data, tag = document["Content"]["Raw"]["Data"], document["EmailTags"][0]["Value"]
            recipients = sum(map(len, document["Destination"].values()))
            whole = len(data) % 4 == 0 and len(data) > 0 and recipients > 0
        except (JSONDecodeError, KeyError, IndexError, TypeError):
            whole = False
        if not (whole and signed):
            return _answer(b"400 Bad Request", b'{"message":"not a mail"}')
        if self._ledger is not None and (refused := self._ledger.take(came, recipients)):
            return _answer(_THROTTLED, dumps({"message": refused}))
        if len(data) * 3 // 4 > LARGE:
            self._octets.take(came, len(data) * 3 // 4)
        self._mails += 1
        self._ids.add(tag)
        return _answer(b"200 OK", dumps({"MessageId": f"{self._mails:016x}-00000000-0000-4000-8000-000000000000"}))


def _answer(status: bytes, content: bytes) -> bytes:
    return _ANSWER % (status, len(content), content)


if __name__ == "__main__":
    StreamServer((sys.argv[1], int(sys.argv[2])), _Service(int(sys.argv[3]) / 1000).serve, backlog=1024).serve_forever()
