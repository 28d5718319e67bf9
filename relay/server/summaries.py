"""Log lines that clients cause without AUTH: one for each address and second, with how many more there were.

The first of a kind is written as it comes; what follows within a second is counted, and told in one line when the
second is over. No line names an address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import gevent

#: Seconds for which lines are counted together.
WINDOW_SECONDS: Final = 1.0
#: Kinds of lines that are told apart within a second; what comes from yet more addresses is counted together.
MOST_KINDS: Final = 50


class Summaries:
    """The lines of one worker."""

    def __init__(self) -> None:
        #: (event, fields, origin or nothing) -> how to write it, and how many more there were
        self._seen: dict[tuple[str, tuple[tuple[str, object], ...], bytes], tuple[Callable[..., None], int]] = {}
        self._timer: object = None

    def write(
        self,
        write: Callable[..., None],
        event: str,
        origin: bytes,
        *,
        once: Mapping[str, object] | None = None,
        **fields: object,
    ) -> None:
        """Writes a line by `write(event, **fields)`, or counts it. `once`: fields that a summary does not have.

        `fields` are words of few kinds. `origin`: see `relay.limits.origin`.
        """
        kind = event, tuple(fields.items()), origin
        if kind not in self._seen and len(self._seen) >= MOST_KINDS:
            kind = event, tuple(fields.items()), b""
        known = self._seen.get(kind)
        if known is not None:
            self._seen[kind] = known[0], known[1] + 1
            return
        if not self._seen:
            self._timer = gevent.get_hub().loop.timer(WINDOW_SECONDS)
            self._timer.start(self.tell)
        if kind[2]:
            self._seen[kind] = write, 0
            write(event, **(once or {}), **fields)
        else:
            self._seen[kind] = write, 1

    def tell(self) -> None:
        """Writes what was counted, and begins anew."""
        seen, self._seen = self._seen, {}
        for (event, fields, origin), (write, more) in seen.items():
            if more:
                several = {} if origin else {"several_addresses": True}
                write(event, more=more, **several, **dict(fields))
