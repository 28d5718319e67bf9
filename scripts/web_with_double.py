"""`python -m relay.web` with a double in the place of Amazon's SNS, and with the double's authority.

    python -m scripts.web_with_double CAFILE PORT [--replay QUEUE-URL]

For tests and for development. No setting says so: what runs in production can't be made to accept any other sender.
"""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch web_with_double instead.")

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from relay.process.assignment import Assignment


def main(cafile: str, port: str, *arguments: str) -> int:
    """As `relay.web.__main__.main` has it."""
    if arguments:
        from relay.aws.sns_host import SnsHost
        from relay.operator import notification_replay  # patches, so before the other

        return notification_replay.main(arguments[1], SnsHost(cafile, ("127.0.0.1", int(port))))

    from relay.process import master, web_children

    def serve(assignment: Assignment) -> int:
        # Patched by the import before it.
        from relay.aws.sns_host import SnsHost
        from relay.process import web

        return web.run(assignment, SnsHost(cafile, ("127.0.0.1", int(port))))

    return master.run(web_children.prepare, web_children.load, serve)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
        raise SystemExit(0 if {"--help", "-h"} & set(sys.argv) else 2)
    raise SystemExit(main(*sys.argv[1:]))
