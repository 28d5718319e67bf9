"""What the master's children do where the service is the delivery worker: no sockets, no certificate."""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    import socket

    from relay.process.assignment import Assignment


def prepare(channel: socket.socket) -> None:
    """In the first child: validates the settings. Raises SystemExit(2) after a line on stderr for a wrong one."""
    from config import environment
    from relay.operator import preflight
    from relay.process import children, handover
    from relay.server import connection_table

    try:
        settings = preflight.load()
    except environment.WrongSettings as error:
        children.refuse(str(error))
    children.warn_of_unknown_settings()
    handover.send(
        channel,
        settings=settings.to_json(),
        certificate=b"",
        workers=settings.delivery_processes,
        drain_seconds=settings.drain_seconds,
        json_lines=settings.writes_json(),
        listeners=[],
        table=connection_table.share(1, 1),
    )


def load(settings: bytes) -> None:
    """In the template: loads all code that a delivery process runs with these settings."""
    from relay.process import children

    children.show_stack_on_signal()
    # structlog would import it for tracebacks that are never printed: 6 MB of every process.
    sys.modules["rich"] = None  # type: ignore[assignment]

    from relay.process import delivery

    delivery.load(settings)


def serve(assignment: Assignment) -> int:
    """In each delivery process: everything else (relay.process.delivery). The exit status."""
    from relay.process import delivery

    return delivery.run(assignment)
