"""One worker process: puts the parts together, serves until it is to end, and takes them apart again."""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import contextlib
import encodings
import importlib
import importlib.resources
import os
import pkgutil
import signal

import gevent
from psycogreen.gevent import patch_psycopg

from relay.core.tls_memory import put_tls_into_memory

patch_psycopg()
put_tls_into_memory()

import config.logging
import config.sentry
from config.settings import Settings
from relay import __version__
from relay.core.errors import QueueUnavailable
from relay.intake.acceptor import AcceptOptions, Acceptor
from relay.intake.bulk_lane import BulkLane
from relay.intake.lookups import Lookups
from relay.intake.parse_clock import ParseClock
from relay.intake.services import IntakeServices
from relay.jobs.intents import Intents
from relay.jobs.publisher import Publisher
from relay.jobs.sender import JobSender
from relay.jobs.sweep import Sweep
from relay.limits.client import ProcessLimits
from relay.operator import exposition
from relay.postgres.store import Store
from relay.process import bulk, fork_ready, signals
from relay.process.assignment import Assignment
from relay.process.collector import collect_seldom
from relay.process.heartbeat import BEAT_SECONDS
from relay.redis.cache import Cache
from relay.server.certificate import CertificateStore, Pair
from relay.server.connection_table import ConnectionTable
from relay.server.descriptors import raise_limit
from relay.server.server import Server
from relay.server.sockets import Listener

#: Seconds at the start for what the queue's client needs to know.
OPEN_SECONDS = 2.0
#: Seconds of the drain that belong to the jobs of the last messages.
PUBLISH_SECONDS = 1.5


#: What other modules import when a mail first needs it.
_ON_DEMAND = ("chardet", "idna.uts46data", "encodings.idna", "importlib.readers")
#: Codecs of Python that exist on Windows alone.
_NOT_HERE = ("mbcs", "oem")


def load(settings_json: bytes) -> None:
    """Loads the code that these settings make necessary and that is not loaded with this module."""
    settings = Settings.from_json(settings_json)
    if settings.sentry_dsn is not None:
        config.sentry.load()
    if settings.metrics_port is not None:
        exposition.load()
    if settings.key_messages_per_minute or settings.address_messages_per_minute:
        import relay.limits.rates  # noqa: PLC0415 - 2 MB, only with a limit
    if settings.queue_url is not None:
        import relay.aws.sqs  # noqa: F401, PLC0415 - boto3, 10 MB, only with a queue
    for module in (*_codecs(), *_ON_DEMAND):
        importlib.import_module(module)
    # chardet looks for the files of its models so, at its first guess. What that imports differs with Python's version.
    importlib.resources.files("chardet")
    fork_ready.settle()


def _codecs() -> list[str]:
    """The modules of all charsets: 2 MB, which all workers share."""
    names = [module.name for module in pkgutil.iter_modules(encodings.__path__)]
    return [f"encodings.{name}" for name in names if name not in _NOT_HERE]


def run(assignment: Assignment) -> int:
    """Serves until a signal ends it; the exit status. Raises CertificateError."""
    settings = Settings.from_json(assignment.settings)
    index = assignment.index
    # Before anything that a process for large messages must not have: a hub, a connection, a private key in use.
    channels = bulk.start(settings)
    config.logging.configure(settings)
    config.sentry.init(settings, __version__)
    exposition.serve(settings, index)
    raise_limit()
    certificate = None
    if settings.tls_cert_path and settings.tls_key_path:
        pair = Pair.decode(assignment.certificate)
        certificate = CertificateStore(settings.tls_cert_path, settings.tls_key_path, pair)
    store = Store(settings.database_url)
    cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify)
    lookups = Lookups(store, cache)
    jobs = None
    if settings.queue_url is not None:
        jobs = _Jobs(settings.queue_url, settings.aws_region, store, cache)
    # A worker that can't have large messages parsed is replaced as if it had ended.
    large = BulkLane(channels, settings.memory_budget_bytes, lost=lambda: os.kill(os.getpid(), signal.SIGTERM))
    clock = ParseClock()
    small = Acceptor(lookups, store, AcceptOptions.of(settings), clock.parse)
    services = IntakeServices(lookups, small, large, _leave_to_polling if jobs is None else jobs.publisher.publish)
    connections = ConnectionTable(assignment.table, index, settings.web_concurrency, settings.max_connections)
    server = Server(settings, services, ProcessLimits(settings, cache.link), certificate=certificate, table=connections)
    collect_seldom()
    store.watch()
    clock.start()
    signals.attend(assignment.lifeline, drain=server.drain, certificate=certificate, keeper=assignment.keeper)
    # The hub turns for the first time when the listeners have been opened: the first beat says that this worker serves.
    beat = gevent.get_hub().loop.timer(0, repeat=BEAT_SECONDS, ref=False)
    beat.start(assignment.heartbeats.beat, index)
    server.serve([Listener.from_fd(fd, implicit_tls) for fd, implicit_tls in assignment.listeners])
    clock.stop()
    large.close()
    if jobs is not None:
        jobs.stop()
    store.close()
    cache.close()
    config.sentry.flush()
    return 0


class _Jobs:
    """What publishes jobs, and the nets below it; neither needs the other, nor a queue that is there."""

    def __init__(self, queue_url: str, region: str, store: Store, cache: Cache) -> None:
        # Not at the top: polling mode needs no boto3, nor the memory that it takes.
        from relay.aws.sqs import Queue  # noqa: PLC0415

        intents = Intents(cache.link)
        queue = Queue(queue_url, region)
        # Before there are clients to wait, and before the collector freezes what stays. Else with the first job.
        with contextlib.suppress(QueueUnavailable):
            queue.open(OPEN_SECONDS)
        self._sender = JobSender(queue)
        self.publisher = Publisher(self._sender, intents)
        self._sweep = Sweep(self._sender, store, intents)
        self.publisher.start()
        self._sweep.start()

    def stop(self) -> None:
        """Publishes what waits, as far as there is time for it."""
        self._sweep.stop()
        self.publisher.stop(PUBLISH_SECONDS)
        self._sender.close()


def _leave_to_polling(_email_id: str) -> None:
    """Without a queue, rows wait in Postgres for a worker that polls (contract section 2)."""
