"""What the master's children do: the first one validates and binds, the template loads, the others serve."""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import NoReturn

    from relay.process.assignment import Assignment
    from relay.server.certificate import CertificateStore


def prepare(channel: socket.socket) -> None:
    """In the first child: validates the settings, binds the sockets, and hands both to the master.

    Raises SystemExit(2) after a line on stderr for whatever stands in the way.
    """
    restrict_groups()

    from config import environment
    from relay.operator import preflight
    from relay.process import handover
    from relay.server import certificate, connection_table, sockets

    try:
        settings = preflight.load()
        listeners = sockets.bind(settings)
    except (environment.WrongSettings, sockets.CannotListen) as error:
        refuse(str(error))
    warn_of_unknown_settings()
    pair = b""
    if settings.tls_cert_path and settings.tls_key_path:
        pair = pair_of(certificate.CertificateStore(settings.tls_cert_path, settings.tls_key_path))
    handover.send(
        channel,
        settings=settings.to_json(),
        certificate=pair,
        workers=settings.web_concurrency,
        drain_seconds=settings.drain_seconds,
        json_lines=settings.writes_json(),
        listeners=[(listener.socket.fileno(), listener.implicit_tls) for listener in listeners],
        table=connection_table.share(settings.web_concurrency, settings.max_connections),
    )


def restrict_groups() -> None:
    """Before anything loads OpenSSL. Ends the process where it can't be done."""
    from relay.server import openssl_policy

    try:
        openssl_policy.restrict_groups()
    except OSError as error:
        refuse(f"OpenSSL can't use the TLS groups of the relay: {error}")


def pair_of(store: CertificateStore) -> bytes:
    """The certificate and key for the master to keep; a line on stderr where clients refuse them for their dates.

    Ends the process where OpenSSL takes groups with them that cost too much (`restrict_groups`).
    """
    from relay.server import certificate, openssl_policy

    expensive = openssl_policy.expensive_groups(store.context)
    if expensive:
        refuse(f"OpenSSL accepts TLS groups that cost too much CPU: {', '.join(expensive)}")
    warning = certificate.expiry_warning(store)
    if warning:
        sys.stderr.write(f"warning: {warning}\n")
    return store.pair.encode()


def warn_of_unknown_settings() -> None:
    """A line on stderr for each variable that only looks like a setting."""
    from config import environment

    for line in environment.unknown():
        sys.stderr.write(f"warning: {line}\n")


def refuse(reason: str) -> NoReturn:
    """Ends the process: the service can't start as it is configured."""
    sys.stderr.write(f"{reason}\n")
    raise SystemExit(2)


def load(settings: bytes) -> None:
    """In the template: loads all code that a worker runs with these settings, and makes dumps of hung ones possible.

    No worker loads code afterwards, and nothing here starts a thread, a hub or a connection: neither outlives a fork.
    """
    from relay.server import openssl_policy

    show_stack_on_signal()
    openssl_policy.restrict_groups()
    # structlog would import it for tracebacks that are never printed: 6 MB of every worker.
    sys.modules["rich"] = None  # type: ignore[assignment]

    from relay.process import worker

    worker.load(settings)


def show_stack_on_signal() -> None:
    """From now on, this process and those forked from it write their stack to standard error when they are signalled.

    What a stack says is file, line and function: no values.
    """
    import faulthandler

    from relay.process import roster

    faulthandler.register(roster.DUMP_SIGNAL, all_threads=False)


def serve(assignment: Assignment) -> int:
    """In each worker: everything else (relay.process.worker). The exit status."""
    from relay.process import worker

    return with_certificate(worker.run, assignment)


def with_certificate(run: Callable[[Assignment], int], assignment: Assignment) -> int:
    """The exit status of a process that serves a certificate."""
    from relay.server import certificate

    try:
        return run(assignment)
    except certificate.CertificateError as error:
        # The pair was good when it was kept, so this is a failure of the machine; the next attempt may succeed.
        sys.stderr.write(f"{error}\n")
        return 1
