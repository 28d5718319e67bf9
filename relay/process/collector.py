"""When Python's collector looks for cycles in a process that serves."""

from __future__ import annotations

import gc
from typing import Final

#: Objects that may come into being, less those that went away, before the collector looks for cycles among them.
COLLECT_AFTER: Final = 10_000


def collect_seldom() -> None:
    """To be called once a process is set up. What is there stays: the collector need not look at it again and again.

    Hardly anything that a message or a request leaves behind is cyclic; what is may keep some of them in memory for a
    while. For the relay to look as often as Python does by itself is 7 % of the CPU of a mail.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
