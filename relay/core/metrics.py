"""What the relay counts and times, and how a scraper reads it.

Counting is an addition to an attribute, without locks or look-ups, because it happens for every message whether or not
somebody reads it; Prometheus's library is imported only where `SMTP_RELAY_METRICS_PORT` asks for it, and then at each
scrape reads what was counted. Each worker is a target of its own, on the port of the setting plus its index: the
scraper adds them up, as it does for several machines. Labels are words from short lists of ours: no address, no user.
"""

from __future__ import annotations

import itertools
import os
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import gevent
import structlog

from config.settings import Settings
from relay import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = structlog.get_logger(__name__)

#: A series never has more children; the rest is counted together under `other`. A bound, should a label grow wild.
MAX_CHILDREN: Final = 200

#: Upper bounds in seconds, from a cached look-up to the deadline of a client.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: How often the hub's lag is measured, in seconds.
LAG_INTERVAL: Final = 0.1


class Counter:
    """Only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Counts `by` more."""
        self.value += by


class Gauge:
    """Goes up and down. Set `value`, or add to it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """How often a value fell below each bound, and the sum of all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Takes one value, mostly seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


Child = TypeVar("Child", Counter, Gauge, Histogram)


class Family(Generic[Child]):
    """One named series, with a child for each combination of label values; without labels there is one child.

    Take a child once, where it is used often: `QUEUED = MESSAGES.labels("queued")`, then `QUEUED.inc()`.
    """

    def __init__(self, name: str, help_text: str, kind: type[Child], label_names: tuple[str, ...] = ()) -> None:
        self.name = name
        self.help_text = help_text
        self.kind: type[Child] = kind
        self.label_names = label_names
        self._children: dict[tuple[str, ...], Child] = {}
        if not label_names:
            self.labels()
        FAMILIES.append(self)

    def labels(self, *values: str) -> Child:
        """The child of these label values, as many as there are names; made at its first use."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}")
            if len(self._children) >= MAX_CHILDREN:
                values = ("other",) * len(values)
            child = self._children.setdefault(values, self.kind())
        return child

    def children(self) -> list[tuple[tuple[str, ...], Child]]:
        """Label values and child, of every combination seen so far."""
        return list(self._children.items())


#: Every series, in the order of their definition.
FAMILIES: Final[list[Family[Any]]] = []

CONNECTIONS: Final = Family("smtp_relay_connections", "Connections accepted", Counter).labels()
CONNECTIONS_REFUSED: Final = Family("smtp_relay_connections_refused", "Answered 421 at once", Counter, ("reason",))
CONNECTIONS_OPEN: Final = Family("smtp_relay_connections_open", "Connections open now", Gauge).labels()
TLS_FAILED: Final = Family("smtp_relay_tls_failed", "TLS handshakes that did not succeed", Counter).labels()
AUTH: Final = Family("smtp_relay_auth", "AUTH commands by reply code", Counter, ("code",))
MESSAGES: Final = Family("smtp_relay_messages", "Messages answered, by what became of them", Counter, ("outcome",))
MESSAGE_BYTES: Final = Family("smtp_relay_message_bytes", "Octets of accepted messages", Counter).labels()
RECIPIENTS: Final = Family("smtp_relay_recipients", "Recipients of accepted messages", Counter).labels()
REFUSALS: Final = Family("smtp_relay_refusals", "Replies from 400 on", Counter, ("code", "enhanced"))
LIMITED: Final = Family("smtp_relay_limited", "What a limit on clients refused", Counter, ("limit",))
PARSED: Final = Family("smtp_relay_parsed", "Messages by parser: flanker, or why not", Counter, ("parser",))
STAGE_SECONDS: Final = Family("smtp_relay_stage_seconds", "Time in parse, screen, store, reply", Histogram, ("stage",))
HUB_LAG: Final = Family("smtp_relay_hub_lag_seconds", "How late timers were", Histogram).labels()
JOBS: Final = Family("smtp_relay_jobs", "Send jobs by result: published, refused, swept", Counter, ("result",))
JOBS_PENDING: Final = Family("smtp_relay_jobs_pending", "Send jobs not yet taken by the queue", Gauge).labels()
CACHE: Final = Family("smtp_relay_cache", "Cache look-ups by kind and result: hit, miss", Counter, ("kind", "result"))
FAULTS: Final = Family("smtp_relay_faults", "Failed calls to postgres, redis, sqs", Counter, ("service",))


def serve(settings: Settings, index: int) -> None:
    """Exposes everything at `/metrics`, where the settings ask for it, and begins to measure the hub's lag.

    Worker `index` listens on the port of the setting plus index. A port that is taken is logged: mail matters more.
    """
    if settings.metrics_port is None:
        return
    from gevent import pywsgi  # noqa: PLC0415 - what only those pay who use it
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(_Exposition(index))
    ProcessCollector(registry=registry)
    address = settings.metrics_host.strip("[]"), settings.metrics_port + index
    server = pywsgi.WSGIServer(address, make_wsgi_app(registry), log=None, error_log=None)
    try:
        server.start()
    except OSError as error:
        log.error("metrics are not exposed", port=address[1], reason=os.strerror(error.errno or 0))
        return
    gevent.spawn(_watch_the_hub)


class _Exposition:
    """A collector (of Prometheus's library) that reads what was counted."""

    def __init__(self, index: int) -> None:
        self._index = index

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import core  # noqa: PLC0415 - as in serve()

        info = core.InfoMetricFamily("smtp_relay", "The relay's version and the worker's index")
        info.add_metric([], {"version": __version__, "worker": str(self._index)})
        yield info
        for family in FAMILIES:
            if family.kind is Counter:
                counter = core.CounterMetricFamily(family.name, family.help_text, labels=family.label_names)
                for values, child in family.children():
                    counter.add_metric(values, child.value)
                yield counter
            elif family.kind is Gauge:
                gauge = core.GaugeMetricFamily(family.name, family.help_text, labels=family.label_names)
                for values, child in family.children():
                    gauge.add_metric(values, child.value)
                yield gauge
            else:
                histogram = core.HistogramMetricFamily(family.name, family.help_text, labels=family.label_names)
                for values, child in family.children():
                    histogram.add_metric(values, _buckets(child), child.sum)
                yield histogram


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))


def _watch_the_hub() -> None:
    while True:
        began = time.monotonic()
        gevent.sleep(LAG_INTERVAL)
        HUB_LAG.observe(max(0.0, time.monotonic() - began - LAG_INTERVAL))
