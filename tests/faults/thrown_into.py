"""The relay, with a door for a test: what connects to THROWN_INTO_PORT may end its supervised greenlets.

Lines in, lines out. `names` is answered by the names of those that run, `KIND NAME` throws an error into each of that
name and is answered by how many they were. KIND is `exception`, `base` (no Exception), `timeout` or `kill`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from config.settings import Settings
from relay import __main__
from relay.process import children

_serve = children.serve


def serve(*arguments: Any) -> int:
    """A worker that opens the door before it begins to serve, and behind its fork of the process for large messages."""
    sys.modules["rich"] = None  # type: ignore[assignment] # as in relay.__main__

    from relay.process import worker  # patches the standard library, and comes first
    from gevent.server import StreamServer  # isort: skip

    start = worker.bulk.start

    def start_and_open(settings: Settings) -> Any:
        channels = start(settings)
        StreamServer(("127.0.0.1", int(os.environ["THROWN_INTO_PORT"])), _obey).start()
        return channels

    worker.bulk.start = start_and_open
    return _serve(*arguments)


def _obey(sock: Any, _address: object) -> None:
    import gevent

    from relay.core.supervision import RUNNING

    class Unforeseen(BaseException):
        """No code expects it."""

    kinds: dict[str, Sequence[Any]] = {
        "exception": (ZeroDivisionError,),
        "base": (Unforeseen,),
        "timeout": (gevent.Timeout(1),),
        "kill": (),
    }
    with sock, sock.makefile("rwb", 0) as stream:
        for line in stream:
            kind, _, name = line.decode().strip().partition(" ")
            if kind == "names":
                # Those that wait for their pause to be over have not begun, and one of several of a name may wait yet.
                waiting = {each.name for each in RUNNING if each.greenlet.gr_frame is None}
                names = sorted({each.name for each in RUNNING} - waiting)
                stream.write(" ".join(names).encode() + b"\n")
                continue
            targets = [each.greenlet for each in RUNNING if each.name == name]
            for target in targets:
                target.kill(*kinds[kind], block=False)
            gevent.joinall(targets, timeout=5)
            stream.write(b"%d\n" % len(targets))


if __name__ == "__main__":
    children.serve = serve
    sys.exit(__main__.main([]))
