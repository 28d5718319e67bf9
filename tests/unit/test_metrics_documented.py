"""docs/metrics.md has every metric under the name that a scraper sees, with its type and labels, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.core import metrics
from relay.core.metrics import Counter, Family, Gauge, Histogram
from relay.delivery.outcome import KINDS as KINDS_OF_FAILURES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
PAPERS = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in ("README.md", "SECURITY.md"))]
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}
#: What the library of Prometheus makes of smtp_relay_info by itself (relay/operator/exposition.py).
INFO = ("smtp_relay_info", "info", ("version", "worker"))
#: A loop over the first values of a label.
_FIRST_VALUES = re.compile(r"for _\w+ in \(([^:]*?)\):\n    metrics\.([A-Z_]+)\.labels\(_\w+\)")
_ROW = re.compile(r"^\| `(smtp_relay_\w+)` \| (\w+) \|([^|]*)\| [RWH]+ \| (.+) \|$", re.MULTILINE)


def exported(family: Family[Counter]) -> str:
    """The name at `/metrics` (OpenMetrics: that of a counter ends in `_total`)."""
    return f"{family.name}_total" if family.kind is Counter else family.name


def registered() -> list[tuple[str, str, tuple[str, ...]]]:
    return [INFO, *((exported(family), KINDS[family.kind], family.label_names) for family in metrics.FAMILIES)]


def rows() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Name: type, labels, meaning."""
    found = _ROW.findall(PAGE)
    assert len({name for name, *_ in found}) == len(found)
    return {name: (kind, tuple(re.findall("`([^`]*)`", labels)), meaning) for name, kind, labels, meaning in found}


def test_each_metric_has_a_row_with_its_type_and_labels_and_no_other_has_one() -> None:
    assert {(name, kind, labels) for name, (kind, labels, _) in rows().items()} == set(registered())


def used_labels() -> Iterator[tuple[str, str]]:
    """(exported name, a value of one of its labels) for the values that stand as literals in the source."""
    for path in (ROOT / "relay").rglob("*.py"):
        source = path.read_text()
        calls = re.findall(r"\bmetrics\.([A-Z_]+)\.labels\(([^)]*)\)", source)
        calls += [(name, words) for words, name in _FIRST_VALUES.findall(source)]
        for name, words in calls:
            for value in re.findall(r'(?<!f)"(\w+)"', re.sub(r'\["\w+"\]|== "\w+"', "", words)):
                yield exported(getattr(metrics, name)), value
    for kind in KINDS_OF_FAILURES:
        yield exported(metrics.DELIVERY_FAILURES), kind


def test_values_of_labels_that_stand_in_the_source_are_explained() -> None:
    used = set(used_labels())
    assert len(used) > 60
    meanings = {name: meaning for name, (_, _, meaning) in rows().items()}
    assert [(name, value) for name, value in sorted(used) if f"`{value}`" not in meanings[name]] == []


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_papers_name_metrics_as_a_scraper_sees_them(page: Path) -> None:
    names = {name for name, _, _ in registered()}
    histograms = {name for name, kind, _ in registered() if kind == "histogram"}
    series = {f"{name}_{suffix}" for name in histograms for suffix in ("bucket", "sum", "count")}
    assert set(re.findall(r"smtp_relay_\w+", page.read_text())) <= names | series
