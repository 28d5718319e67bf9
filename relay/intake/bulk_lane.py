"""The lane for messages that no worker parses itself: the large ones, and those whose parsing was given up there.

Parsing tens of megabytes and building a statement of them are CPU work that no greenlet can interrupt; in a process of
its own it holds up nobody, and neither does it when something goes wrong with it: each message has a child to itself,
which ends with it. `SMTP_RELAY_MEMORY_BUDGET_BYTES` bounds the memory: whoever finds it used up waits for a turn, with
the client waiting at the final dot.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import gevent
import structlog

from relay.core import metrics
from relay.core.deadlines import seconds_left
from relay.intake import footprint
from relay.intake.bulk_protocol import (
    MESSAGE,
    SUCCESSOR,
    Died,
    ForeignVersion,
    Reading,
    Report,
    Uses,
    decode_report,
    encode_head,
    receive_message,
    send_message,
)
from relay.intake.memory_budget import MemoryBudget
from relay.intake.overruns import MessageOverruns
from relay.postgres.owner_limit import OwnerLimit
from relay.smtp import replies
from relay.smtp.spool import Body, NoRoom
from relay.smtp.submission import Submission, Verdict

log = structlog.get_logger(__name__)

#: How long a message may take in its child, whose own limit is a little shorter; seconds.
WORK_SECONDS: Final = 100.0
#: How soon a child has to show that there is one; seconds.
START_SECONDS: Final = 20.0
#: How long it may wait for its turn. Clients wait ten minutes at the final dot (RFC 5321 section 4.5.3.2.6); seconds.
TURN_SECONDS: Final = 300.0
#: Messages of one user that have a child or wait for memory; the others of that user wait outside, and let other users
#: pass.
_OF_ONE_USER: Final = 4
#: Octets of a file that are hashed before the others have their turn.
_SLICE: Final = 1_000_000

_OVERRUNS: Final = metrics.PARSE_OVERRUNS.labels("child")


class _Silent(Exception):
    """The process for large messages did not start a child."""


class BulkLane:
    """Accepts messages, for any number of greenlets.

    `channels`: of the process for large messages and its successor, as `relay.process.bulk.start` gives them; `budget`:
    octets of memory for all messages together; `lost`: called when there is no such process left, and none can be had.
    """

    def __init__(self, channels: Sequence[int], budget: int, lost: Callable[[], None]) -> None:
        self._channels = [socket.socket(fileno=channel) for channel in channels]
        self._budget = MemoryBudget(budget)
        self._lost = lost
        self._users = OwnerLimit(_OF_ONE_USER)
        self._overruns = MessageOverruns()

    def store(self, submission: Submission) -> Verdict:
        """Stores a message, or says why not: 452 when its turn did not come, 451 when the process failed."""
        try:
            submission.body.spool()
            submission.body.fileno()
        except NoRoom:
            return Verdict(replies.NO_ROOM, "no_room")
        reading, digest = Reading.WHOLE, b""
        user_id, size = submission.login.key.user_id, submission.body.size
        if self._overruns.suspects(user_id, size):
            digest = _digest(submission.body)
            times = self._overruns.times(user_id, size, digest)
            if times > 1:
                return Verdict(replies.UNREADABLE, "unreadable")
            if times:
                reading = Reading.HEADER
        until = time.monotonic() + TURN_SECONDS
        with (
            self._users.place(user_id, until) as admitted,
            self._budget.part(footprint.before_parsing(size), seconds_left(until)) as part,
        ):
            if not admitted or not part.granted:
                return Verdict(replies.NO_ROOM, "no_turn")
            try:
                end = self._in_child(submission, reading, part.shrink)
            except (OSError, EOFError, ForeignVersion, _Silent) as error:
                log.error("large_lane_failed", reason=type(error).__name__)
                return Verdict(replies.TRY_LATER, "bulk_unavailable")
        if isinstance(end, Verdict):
            return end
        log.error(
            "large_lane_child_died",
            connection=submission.connection_id,
            signal=_name(end.signal),
            octets=size,
            reading=reading.value,
        )
        if end.signal == signal.SIGPROF:
            _OVERRUNS.inc()
            self._overruns.note(user_id, size, digest or _digest(submission.body))
            return Verdict(replies.TRY_LATER, "parse_overrun")
        return Verdict(replies.TRY_LATER, "bulk_unavailable")

    def close(self) -> None:
        """Ends the process."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    def _in_child(self, submission: Submission, reading: Reading, uses: Callable[[int], None]) -> Verdict | Died:
        """What became of a message in a child of its own. Raises OSError, EOFError, ForeignVersion and _Silent."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = self._order(MESSAGE, [theirs.fileno(), submission.body.fileno()])
            end = time.monotonic() + WORK_SECONDS
            send_message(ours, encode_head(submission, reading))
            try:
                self._receive(ours, START_SECONDS)
            except TimeoutError:
                # It may be stopped, which nobody tells. Closing its channel ends it as soon as it goes on.
                self._give_up(process)
                raise _Silent from None
            while True:
                report = self._receive(ours, end - time.monotonic())
                if isinstance(report, Verdict | Died):
                    return report
                if isinstance(report, Uses):
                    uses(report.octets)

    @staticmethod
    def _receive(channel: socket.socket, seconds: float) -> Report:
        with gevent.Timeout(max(0.0, seconds), TimeoutError):
            document = receive_message(channel)
        if document is None:
            raise EOFError
        return decode_report(document)

    def _order(self, order: bytes, descriptors: list[int]) -> socket.socket:
        """Has an order carried out by the process, or by its successor if it is gone; its channel. Raises OSError."""
        while True:
            if not self._channels:
                self._lost()
                raise EOFError
            process = self._channels[0]
            try:
                socket.send_fds(process, [order], descriptors)
            except OSError:
                self._give_up(process)
            else:
                return process

    def _give_up(self, process: socket.socket) -> None:
        """From now on its successor takes the messages, and forks one of its own."""
        if process not in self._channels:
            return
        log.error("large_lane_gone", left=len(self._channels) - 1)
        self._channels.remove(process)
        process.close()
        if self._channels:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    socket.send_fds(self._channels[0], [SUCCESSOR], [theirs.fileno()])
            except OSError:
                # Gone as well, which the next order finds out.
                ours.close()
            else:
                self._channels.append(ours)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _digest(body: Body) -> bytes:
    """Of all octets of a spooled message."""
    digest = hashlib.blake2b(digest_size=16)
    position = 0
    while octets := os.pread(body.fileno(), _SLICE, position):
        digest.update(octets)
        position += len(octets)
        gevent.sleep(0)
    return digest.digest()
