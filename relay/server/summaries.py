"""Log lines that clients cause without AUTH: one for each address and second, with how many more there were.

The first of a kind is written as it comes; what follows within a second is counted, and written in one line when the
second is over. Such a line names a client's address only where all that it counts came from that address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import gevent

#: Seconds for which lines are counted together.
WINDOW_SECONDS: Final = 1.0
#: Kinds of lines that are counted separately within a second; what comes from yet more addresses is counted together.
MOST_KINDS: Final = 50

#: The event, its fields, and the origin, or nothing where several are counted together.
_Kind = tuple[str, tuple[tuple[str, object], ...], bytes]


class Summaries:
    """The lines of one worker."""

    def __init__(self) -> None:
        self._seen: dict[_Kind, _Counted] = {}
        self._timer: object = None

    def write(
        self,
        write: Callable[..., None],
        event: str,
        origin: bytes,
        *,
        once: Mapping[str, object] | None = None,
        client: str | None = None,
        **fields: object,
    ) -> None:
        """Writes a line by `write(event, **fields)`, or counts it. `once`: fields that a summary does not have.

        `fields` are words of few kinds. `origin`: see `relay.limits.origin`. `client`: the address to be named; an
        origin may have several (IPv6).
        """
        kind = event, tuple(fields.items()), origin
        if kind not in self._seen and len(self._seen) >= MOST_KINDS:
            kind = event, tuple(fields.items()), b""
        known = self._seen.get(kind)
        if known is not None:
            known.more += 1
            if known.client != client:
                known.client = None
            return
        if not self._seen:
            self._timer = gevent.get_hub().loop.timer(WINDOW_SECONDS)
            self._timer.start(self.tell)
        if kind[2]:
            self._seen[kind] = _Counted(write, 0, client)
            write(event, **(once or {}), **_named(client), **fields)
        else:
            self._seen[kind] = _Counted(write, 1, None)

    def tell(self) -> None:
        """Writes what was counted, and begins anew."""
        seen, self._seen = self._seen, {}
        for (event, fields, origin), counted in seen.items():
            if counted.more:
                several = {} if origin else {"several_addresses": True}
                counted.write(event, more=counted.more, **several, **_named(counted.client), **dict(fields))


@dataclass(slots=True)
class _Counted:
    """How lines of one kind are written, how many more there were, and whose they all are."""

    write: Callable[..., None]
    more: int
    client: str | None


def _named(client: str | None) -> dict[str, str]:
    return {} if client is None else {"client": client}
