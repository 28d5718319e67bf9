"""Signals to a worker: drain, load the certificate again. And what it notices: the master's end."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable

import gevent
import gevent.socket
import structlog

from relay.core.supervision import supervise
from relay.server.certificate import CertificateError, CertificateStore, expiry_warning, refused_by_clients

#: Seconds between two looks at the certificate's files (two stat() calls).
CERTIFICATE_POLL_SECONDS = 5.0
#: Seconds between two warnings of a certificate that has expired or soon will.
REMIND_SECONDS = 86_400.0

log = structlog.get_logger(__name__)


def attend(
    lifeline: int, *, drain: Callable[[], None], certificate: CertificateStore | None, keeper: int | None = None
) -> None:
    """Calls `drain` once, on SIGTERM or when the master is gone; loads `certificate` on SIGHUP and when it changed.

    Each runs in a separate greenlet. `lifeline` is the reading end of a pipe that is never written to and whose other
    end is the master's alone: it ends with the master, however that ends. SIGINT is ignored: a terminal sends it to the
    whole group, and the master passes it on as SIGTERM. SIGTERM counts once: some platforms send it to every process,
    and then it comes from the master too. `keeper`: see `relay.process.assignment.Assignment`.
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
        log.warning("master_gone")
        drain_once()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gevent.signal_handler(signal.SIGTERM, drain_once)
    supervise("master-watch", outlive_nobody, ends=True)
    if certificate is None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    else:
        renewal = _Renewal(certificate, keeper)
        gevent.signal_handler(signal.SIGHUP, renewal.reload)
        supervise("certificate-watch", renewal.follow)


class _Renewal:
    """Keeps the certificate as new as its files, and the master in possession of the last pair that was good."""

    def __init__(self, certificate: CertificateStore, keeper: int | None) -> None:
        self._certificate = certificate
        self._keeper = keeper
        self._kept = certificate.pair
        self._remind_next = time.monotonic() + REMIND_SECONDS

    def follow(self) -> None:
        """Looks at the files again and again."""
        while True:
            gevent.sleep(CERTIFICATE_POLL_SECONDS)
            if self._certificate.changed():
                self.reload(always=False)
            self._keep()
            if time.monotonic() >= self._remind_next:
                self._remind_next = time.monotonic() + REMIND_SECONDS
                warning = expiry_warning(self._certificate)
                if warning is not None:
                    log.log(self._level(), "certificate_expires", reason=warning)

    def reload(self, *, always: bool = True) -> None:
        """Loads the files; not `always`: nothing is said when they hold what is served already."""
        try:
            different = self._certificate.reload()
        except CertificateError as error:
            log.error("certificate_not_reloaded", reason=str(error))
            return
        self._keep()
        warning = expiry_warning(self._certificate)
        if warning is not None:
            log.log(self._level(), "certificate_reloaded", reason=warning)
        elif different or always:
            log.info("certificate_reloaded")

    def _level(self) -> int:
        """The level of a line about a certificate that has expired, or soon will."""
        return logging.ERROR if refused_by_clients(self._certificate) else logging.WARNING

    def _keep(self) -> None:
        """Gives the master a pair that it does not have yet. It takes it at once, or at the next look."""
        pair = self._certificate.pair
        if self._keeper is None or pair == self._kept:
            return
        try:
            os.write(self._keeper, pair.encode())
        except OSError:
            return  # the next look tries again
        self._kept = pair
