"""One HTTP process: puts the parts together, serves until it is to end, and takes them apart again."""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import importlib
from dataclasses import replace

from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

import gevent
import structlog

import config.logging
import config.sentry
from config.settings import Settings
from relay import __version__
from relay.aws.sns_host import SnsHost
from relay.limits.origin import Origins
from relay.operator import exposition
from relay.process import fork_ready, signals
from relay.process.assignment import Assignment
from relay.process.collector import collect_seldom
from relay.process.heartbeat import BEAT_SECONDS
from relay.server.certificate import CertificateStore, Pair
from relay.server.connection_table import ConnectionTable
from relay.server.descriptors import raise_limit
from relay.server.sockets import Listener
from relay.server.trusted_proxies import Proxies
from relay.web.application import Application
from relay.web.http_clients import ForwardedFor
from relay.web.parts import WebParts
from relay.web.server import Admission, WebServer

log = structlog.get_logger(__name__)

#: What other modules import when it is first needed.
_ON_DEMAND = ("idna.uts46data", "encodings.idna", "importlib.readers")
#: Seconds of the drain for events that are not written yet.
_WRITE_SECONDS = 3.0
#: Those for the jobs of webhook deliveries, and for the rest.
_CLOSE_SECONDS = 2.0


def load(settings_json: bytes) -> None:
    """Loads the code that these settings make necessary and that is not loaded with this module."""
    settings = Settings.from_json(settings_json)
    if settings.sentry_dsn is not None:
        config.sentry.load()
    if settings.http_metrics_port is not None:
        exposition.load()
    if settings.queue_url is not None:
        import relay.aws.sqs  # noqa: F401, PLC0415 - boto3, only with a queue
    for module in _ON_DEMAND:
        importlib.import_module(module)
    fork_ready.settle()


def run(assignment: Assignment, sns_host: SnsHost | None = None) -> int:
    """Serves until a signal ends it; the exit status. `sns_host`: None: Amazon's own. Raises CertificateError."""
    settings = Settings.from_json(assignment.settings)
    config.logging.configure(settings)
    config.sentry.init(settings, __version__)
    exposition.serve(replace(settings, metrics_port=settings.http_metrics_port), assignment.index)
    raise_limit()
    certificate = None
    if settings.http_tls and settings.tls_cert_path and settings.tls_key_path:
        pair = Pair.decode(assignment.certificate)
        certificate = CertificateStore(settings.tls_cert_path, settings.tls_key_path, pair)
    parts = WebParts(settings, SnsHost() if sns_host is None else sns_host)
    forwarded = ForwardedFor(settings.http_forwarded_for)
    admission = Admission(
        ConnectionTable(assignment.table, assignment.index, settings.http_processes, settings.max_connections),
        most_per_origin=settings.max_connections_per_address,
        origin_of=Origins(settings.database_url.encode("utf-8", "surrogateescape")).of,
        proxies=Proxies(settings.http_proxy_protocol),
        shared=forwarded.trusts,
    )
    application = Application(parts.tracking, parts.notifications, forwarded)
    server = WebServer(application, admission, None if certificate is None else lambda: certificate.context)
    collect_seldom()
    signals.attend(assignment.lifeline, drain=server.drain, certificate=certificate, keeper=assignment.keeper)
    parts.start()
    beat = gevent.get_hub().loop.timer(0, repeat=BEAT_SECONDS, ref=False)
    beat.start(assignment.heartbeats.beat, assignment.index)
    listeners = [Listener.from_fd(fd, implicit_tls).socket for fd, implicit_tls in assignment.listeners]
    left = server.serve(listeners, max(0.0, settings.drain_seconds - _WRITE_SECONDS - _CLOSE_SECONDS))
    if left:
        log.warning("web_unfinished", requests=left)
    parts.close(_WRITE_SECONDS)
    config.sentry.flush()
    return 0
