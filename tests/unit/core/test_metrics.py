"""Counting, and what a scraper is told."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from prometheus_client.parser import text_string_to_metric_families

from config.settings import Settings
from relay.core import metrics
from relay.operator import exposition
from scripts.services import free_port

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> list[metrics.Family[metrics.Counter]]:
    """The test's own series instead of the relay's."""
    own: list[metrics.Family[metrics.Counter]] = []
    monkeypatch.setattr(metrics, "FAMILIES", own)
    monkeypatch.setattr(exposition, "FAMILIES", own)
    return own


def settings(port: int | None) -> Settings:
    return Settings(database_url="postgres://nowhere/x", metrics_port=port)


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """(name, label value, …) -> value; labels in the order of their names."""

    def read() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()

    text = gevent.get_hub().threadpool.apply(read)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_child_is_the_same_each_time() -> None:
    family = metrics.Family("x", "help", metrics.Counter, ("a", "b"))
    assert family.labels("1", "2") is family.labels("1", "2")
    assert family.labels("1", "2") is not family.labels("2", "1")
    with pytest.raises(ValueError, match="labels"):
        family.labels("1")


def test_labels_are_bounded() -> None:
    family = metrics.Family("x", "help", metrics.Counter, ("a",))
    for number in range(metrics.MAX_CHILDREN * 3):
        family.labels(str(number)).inc()
    assert len(family.children()) == metrics.MAX_CHILDREN + 1
    assert family.labels("other").value == metrics.MAX_CHILDREN * 2


def test_what_is_counted_can_be_scraped() -> None:
    queued = metrics.Family("t_messages", "Messages", metrics.Counter, ("outcome",)).labels("queued")
    queued.inc()
    queued.inc(2)
    open_now = metrics.Family("t_open", "Open", metrics.Gauge).labels()
    open_now.value += 5
    seconds = metrics.Family("t_seconds", "Seconds", metrics.Histogram, ("stage",)).labels("parse")
    for value in (0.0001, 0.0005, 0.02, 99.0):
        seconds.observe(value)
    port = free_port()
    exposition.serve(settings(port), 0)
    found = scrape(port)
    assert found["t_messages_total", "queued"] == 3
    assert found["t_open",] == 5
    assert found["t_seconds_count", "parse"] == 4
    assert found["t_seconds_sum", "parse"] == pytest.approx(99.0206)
    assert found["t_seconds_bucket", "0.0005", "parse"] == 2, "a bound belongs to its bucket"
    assert found["t_seconds_bucket", "0.025", "parse"] == 3
    assert found["t_seconds_bucket", "10.0", "parse"] == 3
    assert found["t_seconds_bucket", "+Inf", "parse"] == 4
    assert ("process_resident_memory_bytes",) in found
    queued.inc()
    assert scrape(port)["t_messages_total", "queued"] == 4


def test_each_worker_has_a_port_of_its_own() -> None:
    port = free_port(count=4)
    exposition.serve(settings(port), 3)
    assert any(name[0] == "smtp_relay_info" and "3" in name for name in scrape(port + 3))


def test_a_taken_port_does_not_stop_the_worker() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        exposition.serve(settings(taken.getsockname()[1]), 0)


def test_the_hubs_lag_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lag = metrics.Histogram()
    monkeypatch.setattr(exposition, "HUB_LAG", lag)
    monkeypatch.setattr(exposition, "LAG_INTERVAL", 0.01)
    port = free_port()
    exposition.serve(settings(port), 0)
    gevent.sleep(0.02)
    gevent.get_hub().loop.timer(0).start(lambda: __import__("time").sleep(0.3))
    gevent.sleep(0.5)
    slow = sum(count for bound, count in zip((*lag.bounds, float("inf")), lag.counts, strict=True) if bound > 0.1)
    assert slow >= 1


def test_metrics_cost_nothing_without_a_reader() -> None:
    code = (
        "import sys; from relay.core import metrics; from relay.operator import exposition; "
        "from config.settings import Settings; "
        "exposition.serve(Settings(database_url='postgres://x/y'), 0); metrics.MESSAGES.labels('queued').inc(); "
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_and_labels_hold_no_people() -> None:
    code = "from relay.core import metrics; print(*[n for f in metrics.FAMILIES for n in (f.name, *f.label_names)])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "smtp_relay_messages" in shown
    assert not {"address", "user", "key", "email", "domain", "peer", "ip"} & set(shown.split())
