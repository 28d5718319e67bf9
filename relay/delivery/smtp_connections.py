"""Connections to a smart host that are kept for the next mail: for so many mails, and for so long without one."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from relay.core.supervision import run_once
from relay.delivery.smtp_client import SmtpConnection

#: Seconds that a connection is kept without a mail. Servers wait for five minutes, and say so before they close.
IDLE_SECONDS: Final = 30.0
#: Mails after which a connection is closed, so that hosts behind one name share the load.
MOST_MAILS: Final = 100
#: Seconds for the answer to QUIT.
QUIT_SECONDS: Final = 1.0


class KeptConnections:
    """The connections to one host that carry no mail just now."""

    def __init__(self) -> None:
        #: The latest used at the end.
        self._idle: deque[SmtpConnection] = deque()
        self._closing_planned = False

    def take(self) -> SmtpConnection | None:
        """One that can carry a mail, the latest used first; it is the caller's then. None: there is none."""
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.used <= IDLE_SECONDS and connection.silent():
                return connection
            connection.close()
        return None

    def keep(self, connection: SmtpConnection) -> None:
        """Keeps one for the next mail; one that has carried its share is closed."""
        if connection.mails >= MOST_MAILS:
            connection.quit(time.monotonic() + QUIT_SECONDS)
            return
        connection.used = time.monotonic()
        self._idle.append(connection)
        self._plan_closing()

    def close(self) -> None:
        """Closes all. They wait for the host together as long as one would."""
        until = time.monotonic() + QUIT_SECONDS
        while self._idle:
            self._idle.pop().quit(until)

    def _plan_closing(self) -> None:
        if self._idle and not self._closing_planned:
            self._closing_planned = True
            run_once("smtp_idle_connections", self._close_idle, after=IDLE_SECONDS)

    def _close_idle(self) -> None:
        self._closing_planned = False
        until = time.monotonic() - IDLE_SECONDS
        while self._idle and self._idle[0].used <= until:
            self._idle.popleft().quit(time.monotonic() + QUIT_SECONDS)
        self._plan_closing()
