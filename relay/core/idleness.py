"""Work that many others may add to waits until they have done so."""

from __future__ import annotations

from typing import Final

import gevent

#: Seconds after which it is waited no longer: a process may have something to do all the time.
LONGEST: Final = 0.01


def await_idle() -> None:
    """Returns when nothing else of this process can go on just now, after LONGEST seconds at the latest.

    In a process without other work that is at once.
    """
    with gevent.Timeout(LONGEST, False):  # type: ignore[arg-type]  # gevent: no exception
        gevent.idle()
