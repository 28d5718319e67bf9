"""`python -m relay.delivery` whose webhooks go to a sink on this machine, with the sink's authority.

    python -m scripts.delivery_with_sink CAFILE

For benchmarks and tests. No setting says so: what runs in production can't be made to connect to this machine.
"""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch delivery_with_sink instead.")

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from relay.delivery.outbound_http import Outbound
    from relay.process.assignment import Assignment


def to_sink(cafile: str) -> Outbound:
    """Every name leads to 127.0.0.1, and it may go there. To be called in a process that gevent has patched."""
    import ssl

    from relay.delivery.outbound_http import Outbound

    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return Outbound(
        is_routable=lambda address: address == "127.0.0.1",
        resolve=lambda _host, _port: ["127.0.0.1"],
        context=context,
    )


def main(cafile: str) -> int:
    """As `relay.delivery.__main__.main` has it."""
    from relay.process import delivery_children, master

    def serve(assignment: Assignment) -> int:
        from relay.process import delivery

        return delivery.run(assignment, outbound=to_sink(cafile))

    return master.run(delivery_children.prepare, delivery_children.load, serve)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in {"--help", "-h"}:
        print(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
        raise SystemExit(0 if {"--help", "-h"} & set(sys.argv) else 2)
    raise SystemExit(main(sys.argv[1]))
