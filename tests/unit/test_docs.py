"""What the pages under docs/ name is there: paths, and tests by their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PAPERS = [*PAGES, *sorted(ROOT.glob("*.md"))]
#: Short names of test files on docs/contract.md.
SHORT = {
    "lines": "tests/integration/delivery/test_contract_lines.py",
    "store": "tests/integration/storage/test_store.py",
    "cache": "tests/integration/storage/test_cache.py",
    "jobs": "tests/integration/storage/test_jobs.py",
    "accept": "tests/integration/test_accept.py",
    "environment": "tests/unit/config/test_environment.py",
    "deliverer": "tests/integration/delivery/test_deliverer.py",
    "process": "tests/integration/delivery/test_process.py",
    "compose": "tests/unit/delivery/test_compose.py",
    "tracking": "tests/unit/delivery/test_tracking.py",
    "round": "tests/unit/delivery/test_round_trip.py",
    "webhooks": "tests/integration/delivery/test_webhooks.py",
    "claims": "tests/integration/delivery/test_webhook_claims.py",
    "backlog": "tests/integration/delivery/test_webhook_backlog.py",
    "looks": "tests/integration/delivery/test_webhook_looks.py",
    "outbound": "tests/unit/delivery/test_outbound_http.py",
    "links": "tests/unit/delivery/test_html_links.py",
    "large": "tests/integration/delivery/test_large_mails.py",
    "states": "tests/integration/delivery/test_handovers.py",
    "unclear": "tests/integration/delivery/test_unclear.py",
    "visits": "tests/integration/web/test_tracked_links.py",
    "notices": "tests/integration/web/test_ses_events.py",
    "smtp": "tests/integration/delivery/test_smtp_provider.py",
    "transactions": "tests/integration/delivery/test_smtp_transactions.py",
    "connections": "tests/unit/delivery/test_smtp_connections.py",
    "verdict": "tests/unit/delivery/test_smtp_verdict.py",
    "refused": "tests/integration/delivery/test_refused_recipients.py",
    "text": "tests/unit/delivery/test_smtp_text.py",
    "client": "tests/unit/delivery/test_smtp_client.py",
    "hostile": "tests/integration/delivery/test_hostile_host.py",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_paths_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`(?:\./)?((?:relay|config|tests|scripts|requirements|docs)/[\w./-]*)[` :]", page.read_text())
    missing = [path for path in named if not ((ROOT / path).exists() or (ROOT / f"{path}.py").exists())]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors that the code host gives to headings: lower case, hyphens for blanks, no other punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAPERS, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_are_there(page: Path) -> None:
    missing = []
    for path, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert missing == []


@pytest.mark.parametrize("name", ["contract.md", "delivery.md", "webhooks.md"])
def test_the_tests_that_a_table_names_are_there(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    path = ""
    missing = []
    for short, test in re.findall(r"`([\w/.]*)::(test_\w+)`", page):
        path = SHORT.get(short, short) if short else path
        if f"def {test}(" not in (ROOT / path).read_text():
            missing.append(f"{path}::{test}")
    assert path
    assert missing == []
