"""Amazon SES as `scripts.services.ses_double` imitates it, over real HTTP."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from relay.core.json_document import Json
from scripts.services.server import Server
from scripts.services.ses_request import Answer, Figures, SendEmail

ROOT = Path(__file__).resolve().parents[2]


class Taken(NamedTuple):
    """A mail that the double took: the request without its content, and the content."""

    request: SendEmail
    octets: bytes

    @property
    def email_id(self) -> str:
        """The row's id, as the tag has it."""
        return next(str(tag["Value"]) for tag in self.request["EmailTags"] if tag["Name"] == "X-Entity-ID")


class Ses(Server):
    """Amazon SES as a strict double imitates it."""

    name = "the double of SES"

    def __init__(self, directory: Path, port: int | None = None, *, named: Path | None = None) -> None:
        """`named`: a folder that keeps each mail as `<id of the row>.eml` besides."""
        super().__init__(directory, port)
        self._named = named

    @property
    def endpoint(self) -> str:
        """The base URL for AWS_ENDPOINT_URL_SESV2."""
        return f"http://{self.host}:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a process needs in its environment so that it sends to this server."""
        return {
            "AWS_ENDPOINT_URL_SESV2": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def folder(self) -> Path:
        """Where it keeps what it took."""
        return self.directory / "mails"

    def answer(self, *answers: Answer) -> None:
        """How the next calls are answered: see `ses_double`."""
        self._control(answers=answers)

    def unused_answers(self) -> int:
        """How many of these answers no call has come for yet."""
        return int(str(self._control()["unused"]))

    def has(self, *, account: Mapping[str, object] | None = None, **ledger: float) -> None:
        """Begins a ledger (`ses_ledger.Ledger`) with these fields. `account`: what GetAccount says otherwise."""
        self._control(account=account or {}, ledger=ledger)

    def ledger(self) -> Figures:
        """What the ledger has counted, and how often GetAccount was called (`asked`)."""
        with urllib.request.urlopen(f"{self.endpoint}/ledger", timeout=5) as answer:  # noqa: S310 - our own server
            figures: Figures = json.loads(answer.read())
            return figures

    def _control(self, *, seconds: float = 5, **document: object) -> dict[str, Json]:
        body = json.dumps(document).encode()
        request = urllib.request.Request(f"{self.endpoint}/control", body, {"Content-Type": "application/json"})  # noqa: S310
        answer: dict[str, Json] = json.loads(urllib.request.urlopen(request, timeout=seconds).read())  # noqa: S310 - our own server
        return answer

    def notify(self, url: str) -> tuple[str, int]:
        """From now on it tells what becomes of mails there, signed as SNS does: the authority and port of its SNS."""
        found = self._control(seconds=30, notify=url)
        return str(found["cafile"]), int(str(found["port"]))

    def taken(self) -> list[Taken]:
        """Every mail that it took, in order."""
        return [
            Taken(json.loads(path.read_text()), path.with_suffix(".eml").read_bytes())
            for path in sorted(self.folder.glob("[0-9]*.json"))
        ]

    def forget(self) -> None:
        """Forgets what it took, and how it was to answer. Calls that are not answered yet leave nothing."""
        self._control(forget=True, answers=[], account={}, ledger={})
        for path in self.folder.glob("*"):
            path.unlink()

    def command(self) -> list[str]:
        """See Server."""
        shutil.rmtree(self.folder, ignore_errors=True)
        main = "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[1:];"
        main += " runpy.run_module('scripts.services.ses_double', run_name='__main__')"
        named = [] if self._named is None else [str(self._named)]
        return [sys.executable, "-c", main, str(ROOT), self.host, str(self.port), str(self.folder), *named]

    def answers(self) -> bool:
        """See Server."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), timeout=2):
            return True
        return False
