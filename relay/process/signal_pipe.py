"""Signals of the master as something to wait for. Nothing but the standard library: the master imports this."""

from __future__ import annotations

import os
import signal

from relay.process import forking


class SignalPipe:
    """From the moment at which it is made, signals of `forking.HANDLED` arrive here and do nothing else."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in forking.HANDLED:
            # The handler has nothing to do: the interpreter writes the number, and select() returns.
            signal.signal(number, lambda *_: None)

    def fileno(self) -> int:
        """For select(): whether a signal has arrived."""
        return self._reading

    def read(self) -> bytes:
        """The numbers of those that have arrived, one octet each."""
        try:
            return os.read(self._reading, 4096)
        except BlockingIOError:
            return b""

    def leave(self) -> None:
        """In a child: closes the end that is the master's alone."""
        os.close(self._reading)
