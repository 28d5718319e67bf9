"""Room on the spool's file system: taken before it is written to, so that what has begun to arrive can end.

Eight messages that share what has room for two would each come half, and all of them fail. So each takes the room for
all of it, as far as its size is announced (RFC 1870), before its first octet is written; one that finds none waits for
those that have some, one after the other. A message that announced nothing, or too little, takes room in steps; when
there is none left, the one that came first waits for more, and the others are refused.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from typing import Final

import gevent
import structlog

log = structlog.get_logger(__name__)

#: Octets that are taken at a time where it is not known how many will come: as many as there are, within these bounds.
_LEAST_STEP: Final = 65_536
_LARGEST_STEP: Final = 1_000_000
#: Seconds between two looks whether there is room now. Other processes take and free it too, without a notice.
_POLL_SECONDS: Final = 0.05
#: Seconds between two lines of the log about it.
_LOG_SECONDS: Final = 10.0
_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))


class NoRoom(Exception):
    """The spool can't take the message: no temporary file, or the disk is full. Passes."""


class Share:
    """What one message has of the room."""

    __slots__ = ("_descriptor", "octets")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        #: How much there is for it, written or not.
        self.octets = 0

    def grow(self, octets: int) -> None:
        """Takes room for so many octets in all. Raises OSError, and has what it had before then."""
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._descriptor, self.octets, octets - self.octets)
            except OSError as error:
                # Some file systems keep what they found before they found no more.
                os.ftruncate(self._descriptor, self.octets)
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        self.octets = octets

    def shrink(self, octets: int) -> None:
        """Gives back what is beyond so many octets. Raises OSError."""
        os.ftruncate(self._descriptor, octets)
        self.octets = octets

    def exceeds_disk(self, octets: int) -> bool:
        """Whether the file system is smaller than that, so that there is nothing to wait for."""
        about = os.fstatvfs(self._descriptor)
        return about.f_blocks * about.f_frsize < octets


class SpoolRoom:
    """Hands out room to the messages of one process."""

    #: How long a message waits for it, in seconds. Less than what a client is given for a pause, which it makes then.
    patience = 15.0

    def __init__(self) -> None:
        #: Those that have room and are not whole yet, in the order in which they came.
        self._arriving: dict[Share, None] = {}
        #: Those that wait for their first octet of it.
        self._queue: deque[Share] = deque()
        self._growing: Share | None = None
        self._last_logged = -_LOG_SECONDS

    def take(self, share: Share, octets: int, announced: int) -> None:
        """Sees to it that there is room for so many octets, and for those that are announced. May wait.

        Raises NoRoom.
        """
        if octets <= share.octets:
            return
        step = min(max(octets, _LEAST_STEP), _LARGEST_STEP)
        wanted = (announced,) if announced >= octets else (octets + step, octets)
        first = share not in self._arriving
        try:
            if not (first and self._queue) and self._grown(share, wanted):
                return
            if share.exceeds_disk(wanted[-1]):
                raise NoRoom
            self._wait(share, wanted, first=first)
        except OSError as error:
            raise self.refusal(error) from error
        except NoRoom:
            self._log("no space left")
            raise

    def whole(self, share: Share, size: int) -> None:
        """All of the message is there. Gives back what is beyond its `size`. Raises NoRoom."""
        self._arriving.pop(share, None)
        if share.octets > size:
            try:
                share.shrink(size)
            except OSError as error:
                raise self.refusal(error) from error

    def give_back(self, share: Share) -> None:
        """The file is closed."""
        self._arriving.pop(share, None)

    def refusal(self, error: OSError) -> NoRoom:
        """What an error of the file system means. It is logged, but not for each message."""
        self._log(errno.errorcode.get(error.errno or 0, "?"))
        return NoRoom()

    def _grown(self, share: Share, wanted: tuple[int, ...]) -> bool:
        """Whether there is room for one of these, tried in their order."""
        for octets in wanted:
            try:
                share.grow(octets)
            except OSError as error:
                if octets == wanted[-1] and error.errno not in _FULL:
                    raise
            else:
                self._arriving.setdefault(share)
                return True
        return False

    def _wait(self, share: Share, wanted: tuple[int, ...], *, first: bool) -> None:
        end = time.monotonic() + self.patience
        if first:
            self._queue.append(share)
        elif share is not next(iter(self._arriving)):
            raise NoRoom
        else:
            self._growing = share
        try:
            while time.monotonic() < end:
                gevent.sleep(_POLL_SECONDS)
                turn = not first or (self._queue[0] is share and self._growing is None)
                if turn and self._grown(share, wanted):
                    return
            raise NoRoom
        finally:
            if first:
                self._queue.remove(share)
            else:
                self._growing = None

    def _log(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._last_logged >= _LOG_SECONDS:
            self._last_logged = now
            log.warning("spool_full", reason=reason)
