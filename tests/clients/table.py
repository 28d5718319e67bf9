"""A pytest plugin that ends a run with tables: a line for each client or recipe, a column for each check."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

#: test_bcc[Exim-starttls-envelope]: the check, the client and its security, and what else the check is run with.
#: test_sends[go-mail-recipe]: a recipe of docs/clients.md in place of the security.
_NAME = re.compile(
    r"::test_(?P<check>\w+)\[(?P<client>[^\]]+?)-(?P<security>plain|starttls|tls|recipe)(?:-(?P<variant>\w+))?\]$"
)

_cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
_reasons: dict[str, str] = {}
_versions: dict[str, str] = {}
#: What a client shows for a wrong key.
_shown: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """More clients than an ordinary run of the tests has time for."""
    parser.addoption("--every-client", action="store_true", help="try all mail clients that are installed")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes how a check ended."""
    match = _NAME.search(report.nodeid)
    if match is None or (report.when != "call" and report.passed):
        return
    variant = "" if match["variant"] in (None, "merge") else match["variant"]
    for name, value in report.user_properties:
        if name == "version":
            _versions[match["client"]] = str(value)
        elif name == "said" and match["check"] == "wrong_key":
            _shown[match["client"]] = str(value)
    client, check = (match["client"], match["security"]), f"{match['check']} {variant}".strip()
    if report.failed:
        _cells[client][check] = "FAILED"
    elif report.skipped and isinstance(report.longrepr, tuple):
        _cells[client][check] = "-"
        _reasons[report.longrepr[2].removeprefix("Skipped: ")] = ""
    else:
        _cells[client].setdefault(check, "ok")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints a table of the clients, one of the recipes, what ran these, and what could not be tried and why not."""
    tried = {client: row for client, row in _cells.items() if set(row.values()) != {"-"}}
    _print(terminalreporter, "mail clients", {client: row for client, row in tried.items() if client[1] != "recipe"})
    _print(terminalreporter, "recipes", {client: row for client, row in tried.items() if client[1] == "recipe"})
    for client, version in _versions.items():
        terminalreporter.write_line(f"{client}: {version}")
    if _shown:
        terminalreporter.section("shown for a wrong key")
    for client, said in _shown.items():
        lines = said.strip().splitlines()
        told = [line.strip() for line in lines if "535" in line] or lines
        terminalreporter.write_line(f"{client}: {told[-1]}")
    if _reasons:
        terminalreporter.section("not tried")
    for reason in _reasons:
        terminalreporter.write_line(f"- {reason}")


def _print(terminalreporter: pytest.TerminalReporter, title: str, tried: dict[tuple[str, str], dict[str, str]]) -> None:
    if not tried:
        return
    checks = list(dict.fromkeys(check for row in tried.values() for check in row))
    lines = [("client", "TLS", *(check.replace("_", " ") for check in checks))]
    lines += [(*client, *(row.get(check, "") for check in checks)) for client, row in tried.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    terminalreporter.section(title)
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
