"""The relay with a parser that takes as long as a message asks for. Run as a program.

A message with `X-Burn: <where> <seconds>` costs that much CPU time to parse. Where: `steps` of the interpreter, which
looks at signals between them; `library` is one call that does not; `header` are steps that are taken even where the
header alone is read. SLOW_CHILD_SECONDS is the CPU time that a child may take.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from relay.process import children, master

_BURN = re.compile(rb"^X-Burn: (\w+) ([\d.]+)", re.MULTILINE)


def _slow(parse: Callable[..., Any], *, header_alone: bool = False) -> Callable[..., Any]:
    def parse_slowly(raw: bytes, *rest: Any) -> Any:
        wanted = _BURN.search(raw)
        if wanted and (wanted[1] == b"header" or not header_alone):
            end = time.process_time() + float(wanted[2])
            while time.process_time() < end:
                if wanted[1] == b"library":
                    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
        return parse(raw, *rest)

    return parse_slowly


def load(settings: bytes) -> None:
    children.load(settings)

    from relay.intake import parse_clock
    from relay.process import bulk_child

    parse_clock.parse = _slow(parse_clock.parse)
    bulk_child.parse = _slow(bulk_child.parse)
    bulk_child.parse_header = _slow(bulk_child.parse_header, header_alone=True)
    bulk_child.PARSE_SECONDS = float(os.environ["SLOW_CHILD_SECONDS"])  # type: ignore[misc]


if __name__ == "__main__":
    sys.exit(master.run(children.prepare, load, children.serve))
