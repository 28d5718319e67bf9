"""What the master's children do where the service is the HTTP process: sockets of HTTP, and TLS where it is ours."""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    import socket

    from relay.process.assignment import Assignment


def prepare(channel: socket.socket) -> None:
    """In the first child: validates the settings, binds the sockets, and hands both to the master.

    Raises SystemExit(2) after a line on stderr for whatever stands in the way.
    """
    from relay.process import children

    children.restrict_groups()

    from config import environment
    from relay.operator import preflight
    from relay.process import handover
    from relay.server import certificate, connection_table, sockets

    try:
        settings = preflight.load()
        listeners = sockets.bind_http(settings)
    except (environment.WrongSettings, sockets.CannotListen) as error:
        children.refuse(str(error))
    children.warn_of_unknown_settings()
    pair = b""
    if settings.http_tls and settings.tls_cert_path and settings.tls_key_path:
        pair = children.pair_of(certificate.CertificateStore(settings.tls_cert_path, settings.tls_key_path))
    handover.send(
        channel,
        settings=settings.to_json(),
        certificate=pair,
        workers=settings.http_processes,
        drain_seconds=settings.drain_seconds,
        json_lines=settings.writes_json(),
        # While no process serves, clients are closed without a word: the master's is one of SMTP.
        listeners=[(listener.socket.fileno(), True) for listener in listeners],
        table=connection_table.share(settings.http_processes, settings.max_connections),
    )


def load(settings: bytes) -> None:
    """In the template: loads all code that an HTTP process runs with these settings."""
    from relay.process import children
    from relay.server import openssl_policy

    children.show_stack_on_signal()
    openssl_policy.restrict_groups()
    # structlog would import it for tracebacks that are never printed: 6 MB of every process.
    sys.modules["rich"] = None  # type: ignore[assignment]

    from relay.process import web

    web.load(settings)


def serve(assignment: Assignment) -> int:
    """In each HTTP process: everything else (relay.process.web). The exit status."""
    from relay.process import children, web

    return children.with_certificate(web.run, assignment)
