"""Waiting for a client's next octets, at the least cost that gevent allows."""

from __future__ import annotations

from typing import Any, Final

import gevent

_READABLE: Final = 1


class Wire:
    """Tells the greenlet that made it when its socket has something to read.

    gevent's own `recv` tries first, which fails whenever the client waits for our reply, and then starts and stops a
    watcher. This one stays started from wait to wait, which saves a tenth of the CPU of a small mail. Deadlines are
    kept by whoever throws into the greenlet (`relay.smtp.waits`).
    """

    __slots__ = ("_greenlet", "_hub", "_started", "_waiting", "_watcher")

    def __init__(self, descriptor: int) -> None:
        """`descriptor` stays open until `close`."""
        self._greenlet = gevent.getcurrent()
        self._hub = gevent.get_hub()
        self._watcher: Any = self._hub.loop.io(descriptor, _READABLE)
        self._started = False
        self._waiting = False

    def wait(self) -> None:
        """Returns when there is something to read, or the stream has ended, or sometimes for no reason."""
        if not self._started:
            self._started = True
            self._watcher.start(self._ready)
        self._waiting = True
        try:
            self._hub.switch()
        finally:
            self._waiting = False

    def close(self) -> None:
        """Lets go of the socket, which the caller may close then."""
        self._watcher.stop()
        self._watcher.close()

    def _ready(self) -> None:
        # Called in the hub, again and again for as long as nobody reads.
        if self._waiting:
            self._greenlet.switch()
        else:
            self._watcher.stop()
            self._started = False
