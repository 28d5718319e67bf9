"""What a worker is told from outside: drain, load the certificate again. And what it notices: its master's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import gevent
import gevent.socket
import structlog

from relay.core.supervision import supervise
from relay.server.certificate import CertificateError, CertificateStore

#: Seconds between two looks at the certificate's files (two stat() calls).
CERTIFICATE_POLL_SECONDS = 5.0

log = structlog.get_logger(__name__)


def attend(lifeline: int, *, drain: Callable[[], None], certificate: CertificateStore | None) -> None:
    """Calls `drain` once, on SIGTERM or when the master is gone; loads `certificate` on SIGHUP and when it changed.

    Each runs in a greenlet of its own. `lifeline` is the reading end of a pipe that nobody writes to and whose other
    end is the master's alone: it ends with the master, however that dies. SIGINT is ignored: a terminal sends it to the
    whole group, and the master passes it on as SIGTERM. SIGTERM counts once: some platforms send it to every process,
    and then it comes from the master too.
    """
    drained = False

    def drain_once() -> None:
        nonlocal drained
        if not drained:
            drained = True
            drain()

    def outlive_nobody() -> None:
        os.set_blocking(lifeline, False)
        gevent.socket.wait_read(lifeline)
        log.warning("master is gone, draining")
        drain_once()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gevent.signal_handler(signal.SIGTERM, drain_once)
    supervise("master-watch", outlive_nobody, ends=True)
    if certificate is None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    else:
        gevent.signal_handler(signal.SIGHUP, _reload, certificate)
        supervise("certificate-watch", _follow, certificate)


def _follow(certificate: CertificateStore) -> None:
    while True:
        gevent.sleep(CERTIFICATE_POLL_SECONDS)
        if certificate.changed():
            _reload(certificate)


def _reload(certificate: CertificateStore) -> None:
    try:
        certificate.reload()
    except CertificateError as error:
        log.error("certificate not reloaded, the old one serves on", reason=str(error))
    else:
        log.info("certificate reloaded")
