"""What the master's children do: the first one validates and binds, the others serve."""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence


def prepare(channel: socket.socket) -> None:
    """In the first child: validates the settings, binds the sockets, and hands both to the master.

    Raises SystemExit(2) after a line on stderr for whatever stands in the way.
    """
    from config import environment
    from relay.operator import preflight
    from relay.process import master
    from relay.server import certificate, connection_table, sockets

    try:
        settings = preflight.load()
        listeners = sockets.bind(settings)
    except (environment.WrongSettings, sockets.CannotListen) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    if settings.tls_cert_path and settings.tls_key_path:
        warning = certificate.expiry_warning(
            certificate.CertificateStore(settings.tls_cert_path, settings.tls_key_path)
        )
        if warning:
            sys.stderr.write(f"warning: {warning}\n")
    if settings.web_concurrency > 1:
        # flanker writes its grammar's tables beside itself at its first import, and two workers would do so at once.
        import relay.mail  # noqa: F401
    master.hand_over(
        channel,
        settings=settings.to_json(),
        workers=settings.web_concurrency,
        drain_seconds=settings.drain_seconds,
        json_lines=settings.writes_json(),
        listeners=[(listener.socket.fileno(), listener.implicit_tls) for listener in listeners],
        board=connection_table.share(settings.web_concurrency, settings.max_connections),
    )


def serve(index: int, settings: bytes, listeners: Sequence[tuple[int, bool]], lifeline: int, board: int) -> int:
    """In each worker: everything else (relay.process.worker). The exit status."""
    # structlog would import it for tracebacks that are never printed: 6 MB of every worker.
    sys.modules["rich"] = None  # type: ignore[assignment]

    from relay.process import worker
    from relay.server import certificate

    try:
        return worker.run(index, settings, listeners, lifeline, board)
    except certificate.CertificateError as error:
        # It was fine when the service started: half a renewal, which the next attempt finds whole.
        sys.stderr.write(f"{error}\n")
        return 2
