"""File descriptors: are there enough for the connections that are allowed?"""

from __future__ import annotations

import contextlib
import resource
from typing import Final

#: What a worker opens besides its connections: pool, Redis, queue, listeners, logs, pipes, and some spooled messages.
OTHERS: Final = 100


def raise_limit() -> int:
    """Raises this process's limit as far as it may; how many descriptors it can open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    # Where "unlimited" is not a limit that can be set, the present one has to do.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def descriptor_shortage(max_connections: int) -> str | None:
    """Why so many connections can't be, in one line fit for stderr. Raises the limit, to see how far that goes."""
    limit = raise_limit()
    if limit == resource.RLIM_INFINITY or max_connections + OTHERS <= limit:
        return None
    return (
        f"SMTP_RELAY_MAX_CONNECTIONS is {max_connections}: should be at most {max(1, limit - OTHERS)}, "
        f"since a process may open {limit} files here (ulimit -Hn), and needs {OTHERS} besides connections"
    )
