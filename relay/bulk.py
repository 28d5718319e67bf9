"""The lane for large messages: parsed and stored in a process of its own, one at a time.

Parsing tens of megabytes and quoting them for Postgres are CPU work that no greenlet can interrupt; here they hold up
nobody. One at a time bounds the memory: whoever comes meanwhile waits, and its client waits at the final dot. The
process is started by the first large message and ended after a while without one.

    parent → child   the settings, once; then for each message a head (JSON) with the descriptor of the spooled file
    child → parent   the verdict (JSON)

Each is preceded by its length, four octets, network order.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Final

import gevent
import structlog
from gevent.lock import BoundedSemaphore

from relay.records import ApiKey, RecipientRule
from relay.smtp import replies
from relay.smtp.replies import Reply
from relay.spool import Body
from relay.submission import Login, Submission, Verdict

log = structlog.get_logger(__name__)

#: How long a message may take in the process, once it is its turn; seconds.
WORK_SECONDS: Final = 60.0
#: How long it may wait for its turn. Clients wait ten minutes at the final dot (RFC 5321 section 4.5.3.2.6); seconds.
TURN_SECONDS: Final = 240.0
#: The process ends after so long without a message; seconds.
IDLE_SECONDS: Final = 30.0

LENGTH_OCTETS: Final = 4


class BulkLane:
    """Accepts spooled messages, for any number of greenlets. `settings`: as `Settings.to_json` gives them."""

    def __init__(self, settings: bytes) -> None:
        self._settings = settings
        self._turn = BoundedSemaphore(1)
        self._process: Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._last_used = 0.0
        self._watcher: gevent.Greenlet | None = None

    def accept(self, submission: Submission) -> Verdict:
        """Stores a message, or says why not: 452 when its turn did not come, 451 when the process failed."""
        if not self._turn.acquire(timeout=TURN_SECONDS):
            return Verdict(replies.NO_ROOM, "no_turn")
        try:
            with gevent.Timeout(WORK_SECONDS, TimeoutError):
                channel = self._connected()
                send_message(channel, _head(submission), [submission.body.fileno()])
                verdict = receive_message(channel)
            if verdict is None:
                raise EOFError
            self._last_used = time.monotonic()
            return _verdict(json.loads(verdict))
        except (OSError, EOFError) as error:
            log.error("process for large messages failed", reason=type(error).__name__)
            self._end()
            return Verdict(replies.TRY_LATER, "bulk_unavailable")
        except BaseException:
            # What the process still answers must not be taken for the answer to the next message.
            self._end()
            raise
        finally:
            self._turn.release()

    def close(self) -> None:
        """Ends the process."""
        if self._watcher is not None:
            self._watcher.kill()
        self._end()

    def _connected(self) -> socket.socket:
        if self._channel is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-m", "relay.bulkprocess", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    cwd=Path(__file__).parent.parent,
                    stdin=DEVNULL,
                )
            self._channel = ours
            send_message(ours, self._settings)
            self._last_used = time.monotonic()
            self._watcher = gevent.spawn(self._end_when_idle)
        return self._channel

    def _end_when_idle(self) -> None:
        while self._process is not None:
            gevent.sleep(max(1.0, self._last_used + IDLE_SECONDS - time.monotonic()))
            with self._turn:
                if time.monotonic() - self._last_used >= IDLE_SECONDS:
                    self._end()
                    return

    def _end(self) -> None:
        channel, self._channel = self._channel, None
        process, self._process = self._process, None
        if channel is not None:
            channel.close()
        if process is not None:
            # Everything that it answered is committed, and what it was doing was answered by nobody.
            process.kill()
            process.wait()


def _head(submission: Submission) -> bytes:
    head = {
        "token_hash": submission.login.token_hash,
        "key": asdict(submission.login.key),
        "recipients": submission.recipients,
        "rule": submission.rule.value,
        "connection_id": submission.connection_id,
    }
    return json.dumps(head).encode("ascii")


def submission_of(head: dict[str, Any], body: Body) -> Submission:
    """The submission that a head describes, with the file that came along."""
    return Submission(
        login=Login(head["token_hash"], ApiKey(**head["key"])),
        recipients=tuple(head["recipients"]),
        rule=RecipientRule(head["rule"]),
        body=body,
        connection_id=head["connection_id"],
    )


def _verdict(document: dict[str, Any]) -> Verdict:
    reply = document.pop("reply")
    reply["lines"] = tuple(reply["lines"])
    document["stored"] = tuple(document["stored"])
    return Verdict(reply=Reply(**reply), **document)


def send_message(channel: socket.socket, octets: bytes, descriptors: list[int] | None = None) -> None:
    """One message to the other side, with open files. Raises OSError."""
    length = len(octets).to_bytes(LENGTH_OCTETS, "big")
    if descriptors:
        socket.send_fds(channel, [length], descriptors)
    else:
        channel.sendall(length)
    channel.sendall(octets)


def receive_exactly(channel: socket.socket, count: int) -> bytes | None:
    """The next octets; None when the other side closed. Raises OSError."""
    received = b""
    while len(received) < count:
        octets = channel.recv(count - len(received))
        if not octets:
            return None
        received += octets
    return received


def receive_message(channel: socket.socket) -> bytes | None:
    """The next message without files; None when the other side closed. Raises OSError."""
    length = receive_exactly(channel, LENGTH_OCTETS)
    return None if length is None else receive_exactly(channel, int.from_bytes(length, "big"))
