"""A stand-in for Amazon's queue service that takes jobs at once: the service itself runs elsewhere, on other cores.

moto, which the tests talk to, needs three times the CPU of the relay for each job. Beside a relay on two cores that is
felt in everything that the relay does, and no longer what publishing costs. This one reads each call, has a look at
each entry, counts it, and gives the answer that Amazon would; it keeps nothing. Run as a separate process:

    python -m scripts.benchmark.swiftqueue HOST PORT
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.swiftqueue instead.")

import sys
import urllib.request
from pathlib import Path
from typing import Final

import gevent.socket
from gevent.server import StreamServer
from orjson import dumps, loads

from scripts.services import Server, Sqs

_ANSWER: Final = (
    b"HTTP/1.1 %s\r\nx-amzn-RequestId: 9f2d3c1e-5a4b-5f6d-8e7c-0b1a2c3d4e5f\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Type: application/x-amz-json-1.0\r\nContent-Length: %d\r\nconnection: keep-alive\r\n\r\n%s"
)
_DIGEST: Final = "d41d8cd98f00b204e9800998ecf8427e"


class SwiftQueue(Server):
    """The stand-in as a process."""

    name = "The swift queue"
    queue_url = "http://127.0.0.1/bench"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a relay needs in its environment so that its jobs come here."""
        return Sqs.environment_for(f"http://{self.host}:{self.port}")

    def command(self) -> list[str]:
        """See Server."""
        return [sys.executable, "-m", "scripts.benchmark.swiftqueue", self.host, str(self.port)]

    def working_directory(self) -> Path:
        """See Server."""
        return Path(__file__).resolve().parent.parent.parent

    def answers(self) -> bool:
        """See Server."""
        try:
            return self.jobs() >= 0
        except OSError:
            return False

    def jobs(self) -> int:
        """How many jobs it has been given."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/", timeout=10) as answer:
            return int(answer.read())


class _Service:
    def __init__(self) -> None:
        self._jobs = 0

    def serve(self, sock: gevent.socket.socket, _address: object) -> None:
        """One connection: a request after the other."""
        with sock.makefile("rb") as stream:
            while line := stream.readline():
                length = 0
                while (field := stream.readline()) not in (b"\r\n", b""):
                    name, _, value = field.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                if line.startswith(b"GET "):
                    sock.sendall(_answer(b"200 OK", b"%d" % self._jobs))
                else:
                    sock.sendall(self._take(stream.read(length)))

    def _take(self, call: bytes) -> bytes:
        try:
            entries = [_receipt(entry) for entry in loads(call)["Entries"]]
        except (ValueError, KeyError, TypeError):
            return _answer(b"400 Bad Request", b'{"__type":"com.amazonaws.sqs#InvalidRequest"}')
        self._jobs += len(entries)
        return _answer(b"200 OK", dumps({"Successful": entries}))


def _receipt(entry: dict[str, str]) -> dict[str, str]:
    """What Amazon says of an entry that it takes: a job with a body that is JSON, and an id."""
    return {
        "Id": entry["Id"],
        "MessageId": loads(entry["MessageBody"])["emailId"],
        "MD5OfMessageBody": _DIGEST,
        "MD5OfMessageAttributes": _DIGEST,
    }


def _answer(status: bytes, content: bytes) -> bytes:
    return _ANSWER % (status, len(content), content)


if __name__ == "__main__":
    StreamServer((sys.argv[1], int(sys.argv[2])), _Service().serve).serve_forever()
