"""The lane for messages that no worker parses itself: the large ones, and those whose parsing was given up there.

Parsing tens of megabytes and building a statement of them are CPU work that no greenlet can interrupt; in a separate
process it holds up no other message, and neither does it when something goes wrong with it: each message has a child to
itself. A child that stored its message takes another one; one that did not ends. `SMTP_RELAY_MEMORY_BUDGET_BYTES`
bounds the memory: a message that finds it used up waits for a turn, with the client waiting at the final dot.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import gevent
import structlog

from relay.core import metrics
from relay.core.deadlines import seconds_left
from relay.intake import footprint
from relay.intake.bulk_protocol import (
    CHILD,
    SUCCESSOR,
    Died,
    ForeignVersion,
    Reading,
    Report,
    Started,
    Uses,
    decode_report,
    encode_head,
    leaves_child_free,
    receive_message,
    send_request,
)
from relay.intake.memory_budget import MemoryBudget
from relay.intake.overruns import MessageOverruns
from relay.postgres.owner_limit import OwnerLimit
from relay.smtp import replies
from relay.smtp.spool import Body, NoRoom
from relay.smtp.submission import Submission, Verdict

if TYPE_CHECKING:
    from gevent._types import _TimerWatcher  # a module of the stubs alone

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
#: Children that wait for another message, how long each of them does, in seconds, and how many it takes in all.
_FREE_CHILDREN: Final = 2
FREE_SECONDS: Final = 2.0
_MESSAGES_OF_A_CHILD: Final = 100
#: Octets of a file that are hashed before the others have their turn.
_SLICE: Final = 1_000_000

_OVERRUNS: Final = metrics.PARSE_OVERRUNS.labels("child")


class _Silent(Exception):
    """The process for large messages did not start a child."""


class _Child:
    """The worker's view of a child."""

    __slots__ = ("channel", "held", "messages", "process")

    def __init__(self, channel: socket.socket, process: socket.socket) -> None:
        self.channel = channel
        #: The channel of the process that forked it.
        self.process = process
        #: How many it has had.
        self.messages = 0
        #: Octets of the budget that it has while it is free.
        self.held = 0


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
        #: Children without a message, and the timer of the hub that ends each of them.
        self._free: dict[_Child, _TimerWatcher] = {}

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
        needed = footprint.before_parsing(size)
        with self._users.place(user_id, until) as admitted:
            self._free_memory(needed)
            with self._budget.part(needed, seconds_left(until)) as part:
                if not admitted or not part.granted:
                    return Verdict(replies.NO_ROOM, "no_turn")
                try:
                    end, child = self._in_child(submission, reading, part.shrink)
                except (OSError, EOFError, ForeignVersion, _Silent) as error:
                    log.error("large_lane_failed", reason=type(error).__name__)
                    return Verdict(replies.TRY_LATER, "bulk_unavailable")
        if isinstance(end, Verdict):
            if leaves_child_free(end):
                self._set_free(child)
            else:
                child.channel.close()
            return end
        child.channel.close()
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
        self._end_free_children()
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    def _in_child(
        self, submission: Submission, reading: Reading, uses: Callable[[int], None]
    ) -> tuple[Verdict | Died, _Child]:
        """What became of a message, and the child that it was in. Raises OSError, EOFError, ForeignVersion, _Silent."""
        head = encode_head(submission, reading)
        child = self._begun_in_free_child(head, submission.body)
        if child is None:
            child = self._begun(self._new_child(), head, submission.body)
        report: Report | None = None
        try:
            end = time.monotonic() + WORK_SECONDS
            while not isinstance(report, Verdict | Died):
                report = self._receive(child.channel, end - time.monotonic())
                if isinstance(report, Uses):
                    uses(report.octets)
        except BaseException:
            child.channel.close()
            raise
        return report, child

    def _begun_in_free_child(self, head: bytes, body: Body) -> _Child | None:
        """A child that waited for a message, and has begun with this one. None: there was none, or it is gone."""
        while self._free:
            child = min(self._free, key=lambda free: free.held)
            self._free.pop(child).close()
            self._give_back(child)
            if select.select([child.process], [], [], 0)[0]:
                # Its process is gone, and no other would report how the child ends.
                child.channel.close()
                self._give_up(child.process)
                continue
            try:
                return self._begun(child, head, body)
            except (OSError, EOFError):
                continue  # nothing has been done with the message yet
        return None

    def _begun(self, child: _Child, head: bytes, body: Body) -> _Child:
        """The child, which has begun with the message. Raises OSError, EOFError, ForeignVersion and _Silent."""
        begun = False
        try:
            child.messages += 1
            send_request(child.channel, head, body.fileno())
            begun = isinstance(self._receive(child.channel, START_SECONDS), Started)
            if not begun:
                raise EOFError
        except TimeoutError:
            # It may be stopped, which is not reported. Closing its channel ends it as soon as it goes on.
            self._give_up(child.process)
            raise _Silent from None
        finally:
            if not begun:
                child.channel.close()
        return child

    def _new_child(self) -> _Child:
        """Raises OSError and EOFError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                return _Child(ours, self._request(CHILD, [theirs.fileno()]))
            except BaseException:
                ours.close()
                raise

    def _set_free(self, child: _Child) -> None:
        """Has a child wait for another message, unless its memory is needed for something else."""
        child.held = 0
        handed_on = sum(not each.held for each in self._free)
        if child.messages >= _MESSAGES_OF_A_CHILD or child.process not in self._channels:
            keeps = False
        elif handed_on < self._budget.resuming:
            # A message whose turn has come takes it at once. What such a message has been given is enough for both.
            keeps = True
        else:
            keeps = len(self._free) < _FREE_CHILDREN and self._budget.take(footprint.CHILD_OCTETS)
            child.held = footprint.CHILD_OCTETS if keeps else 0
        if keeps:
            self._free[child] = gevent.get_hub().loop.timer(FREE_SECONDS)
            self._free[child].start(self._end_free_child, child)
        else:
            child.channel.close()

    def _free_memory(self, octets: int) -> None:
        """Takes memory from free children where so much can't be had else."""
        if self._free and not self._budget.has(octets):
            # The message takes this child: what it is given is enough for both.
            self._give_back(next(iter(self._free)))
            if not self._budget.has(octets):
                self._end_free_children()

    def _give_back(self, child: _Child) -> None:
        self._budget.give_back(child.held)
        child.held = 0

    def _end_free_children(self) -> None:
        for child in list(self._free):
            self._end_free_child(child)

    def _end_free_child(self, child: _Child) -> None:
        self._free.pop(child).close()
        child.channel.close()
        self._give_back(child)

    @staticmethod
    def _receive(channel: socket.socket, seconds: float) -> Report:
        with gevent.Timeout(max(0.0, seconds), TimeoutError):
            document = receive_message(channel)
        if document is None:
            raise EOFError
        return decode_report(document)

    def _request(self, request: bytes, descriptors: list[int]) -> socket.socket:
        """Has a request carried out by the process, or by its successor if it is gone; its channel. Raises OSError."""
        while True:
            if not self._channels:
                self._lost()
                raise EOFError
            process = self._channels[0]
            try:
                socket.send_fds(process, [request], descriptors)
            except OSError:
                self._give_up(process)
            else:
                return process

    def _give_up(self, process: socket.socket) -> None:
        """From now on its successor takes the messages, and forks another successor."""
        if process not in self._channels:
            return
        log.error("large_lane_gone", left=len(self._channels) - 1)
        self._channels.remove(process)
        process.close()
        for child in [each for each in self._free if each.process is process]:
            self._end_free_child(child)
        if self._channels:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                with theirs:
                    socket.send_fds(self._channels[0], [SUCCESSOR], [theirs.fileno()])
            except OSError:
                # Gone as well, which the next request finds out.
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
