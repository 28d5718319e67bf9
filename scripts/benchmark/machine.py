"""Who uses the machine's processors meanwhile: what is measured, the servers behind it, and programs beside them."""

from __future__ import annotations

import os
import time

import psutil

from scripts.benchmark.subjects import cpu_seconds
from scripts.services import Server


class Usage:
    """CPU time of parties from now on, and of everything else that runs on the machine."""

    def __init__(self, **parties: Server) -> None:
        self._parties = parties
        self._began = time.monotonic()
        self._before = self._read()

    def parts(self) -> dict[str, float]:
        """The processors that each party had on average so far (1.0: one, all of the time), `others` and `idle`."""
        seconds = time.monotonic() - self._began
        return {name: (now - self._before[name]) / seconds for name, now in self._read().items()}

    def text(self) -> str:
        """The same in words, in percent of one processor."""
        return ", ".join(f"{name} {part:.0%}" for name, part in self.parts().items()) + f", of {os.cpu_count()}00%"

    def _read(self) -> dict[str, float]:
        seconds = {name: cpu_seconds(server.pid) for name, server in self._parties.items()}
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # What a guest has counts as its user's too.
        whole = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return {**seconds, "others": whole - sum(seconds.values()), "idle": idle}
