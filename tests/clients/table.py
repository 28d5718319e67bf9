"""A pytest plugin that ends a run with a table: a line for each client, a column for each check."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

#: test_bcc[Exim-starttls-envelope]: the check, the client and its security, and what else the check is run with.
_NAME = re.compile(r"::test_(?P<check>\w+)\[(?P<client>[^-\]]+(?:-nail)?)-(?P<security>\w+)(?:-(?P<variant>\w+))?\]$")

_cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
_reasons: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """More clients than an ordinary run of the tests has time for."""
    parser.addoption("--every-client", action="store_true", help="try all mail clients that are installed")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes how a check ended."""
    match = _NAME.search(report.nodeid)
    if match is None or (report.when != "call" and report.passed):
        return
    variant = "" if match["variant"] in (None, "merge") else match["variant"]
    client, check = (match["client"], match["security"]), f"{match['check']} {variant}".strip()
    if report.failed:
        _cells[client][check] = "FAILED"
    elif report.skipped and isinstance(report.longrepr, tuple):
        _cells[client][check] = "-"
        _reasons[report.longrepr[2].removeprefix("Skipped: ")] = ""
    else:
        _cells[client].setdefault(check, "ok")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table, without the clients that could not be tried at all, and why not."""
    tried = {client: row for client, row in _cells.items() if set(row.values()) != {"-"}}
    checks = list(dict.fromkeys(check for row in tried.values() for check in row))
    lines = [("client", "TLS", *(check.replace("_", " ") for check in checks))]
    lines += [(*client, *(row.get(check, "") for check in checks)) for client, row in tried.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section("mail clients")
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
    for reason in _reasons:
        terminalreporter.write_line(f"- {reason}")
