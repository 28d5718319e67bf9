"""`python -m relay`: serve; `--check`: can mail flow?"""

# ruff: noqa: PLC0415 - the master process imports next to nothing (relay.process.master), the rest is its children's

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

USAGE = """\
usage: python -m relay [--check | --version | --help]

The SMTP door to OpenSend. Without an argument it serves until SIGTERM.

  --check    test settings, certificate, database, Redis and queue;
             exit 1 where mail could not flow, 2 for a wrong setting
  --version  print the version
  --help     print this

Settings are environment variables; the README has the table.
"""


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 fine, 1 failed, 2 wrong arguments or settings."""
    if not arguments:
        from relay.process import master

        return master.run(prepare, serve)
    if len(arguments) > 1 or arguments[0] not in ("--check", "--version", "--help", "-h"):
        sys.stderr.write(f"python -m relay: can't make anything of: {' '.join(arguments)}\n\n{USAGE}")
        return 2
    if arguments[0] == "--check":
        from relay.operator import check

        return check.main()
    if arguments[0] == "--version":
        from relay import __version__

        print(f"opensend-relay {__version__}")
        return 0
    print(USAGE, end="")
    return 0


def prepare(channel: socket.socket) -> None:
    """In the first child: validates the settings, binds the sockets, and hands both to the master.

    Raises SystemExit(2) after a line on stderr for whatever stands in the way.
    """
    from config import environment
    from relay.process import master
    from relay.server import certificate, connection_table, sockets

    try:
        settings = environment.load()
        listeners = sockets.bind(settings)
    except (environment.WrongSettings, sockets.CannotListen) as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from error
    if settings.tls_cert_path and settings.tls_key_path:
        complaint = certificate.complaint(certificate.CertificateStore(settings.tls_cert_path, settings.tls_key_path))
        if complaint:
            sys.stderr.write(f"warning: {complaint}\n")
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
