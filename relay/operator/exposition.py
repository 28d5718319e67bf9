"""How a scraper reads what was counted: `/metrics` in Prometheus's form, where the settings ask for it."""

from __future__ import annotations

import importlib
import itertools
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import gevent
import structlog

from config.logging import LineLogger
from config.settings import Settings
from relay import __version__
from relay.core.metrics import FAMILIES, HUB_LAG, LOG_LINES_LOST, Counter, Gauge, Histogram
from relay.core.supervision import supervise

if TYPE_CHECKING:
    from prometheus_client.core import Metric

log = structlog.get_logger(__name__)
#: How often the hub's lag is measured, in seconds.
LAG_INTERVAL: Final = 0.1


def load() -> None:
    """Loads what `serve` needs, where the settings ask for it: it takes 4 MB."""
    for module in ("prometheus_client", "relay.operator.scrape_server"):
        importlib.import_module(module)


def serve(settings: Settings, index: int) -> None:
    """Exposes everything at `/metrics`, where the settings ask for it, and begins to measure the hub's lag.

    Worker `index` listens on the port of the setting plus index. A port that is taken is logged: mail matters more.
    """
    if settings.metrics_port is None:
        return
    from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app  # noqa: PLC0415 - see load()

    from relay.operator.scrape_server import ScrapeServer  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(_Exposition(index))
    ProcessCollector(registry=registry)
    address = settings.metrics_host.strip("[]"), settings.metrics_port + index
    server = ScrapeServer(address, make_wsgi_app(registry))
    try:
        server.start()
    except OSError as error:
        log.error("metrics_not_exposed", port=address[1], reason=os.strerror(error.errno or 0))
        return
    supervise("hub-lag", _watch_the_hub)


class _Exposition:
    """A collector (of Prometheus's library) that reads what was counted."""

    def __init__(self, index: int) -> None:
        self._index = index

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import core  # noqa: PLC0415 - as in serve()

        info = core.InfoMetricFamily("smtp_relay", "The relay's version and the worker's index")
        info.add_metric([], {"version": __version__, "worker": str(self._index)})
        yield info
        LOG_LINES_LOST.value = LineLogger.lost
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
