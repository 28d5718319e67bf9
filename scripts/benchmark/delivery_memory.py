"""`python -m scripts.benchmark.delivery_memory`: the memory of a delivery process with large mails among small ones.

One process, 20 mails at a time, of which two have 39 MB: `--kind attachment` (one of them), `text`, `html` (with links
that are tracked) or `both` (a text and an HTML of half the size). The kernel measures the process's most: VmHWM, which
counts the code that it shares with the master, and PSS, which counts its part of that.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.delivery_memory instead.")

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final

from scripts.benchmark.subjects import PeakRss
from scripts.database import apply_schema, create_database, execute, query
from scripts.services import Postgres, Ses, processes

ROOT: Final = Path(__file__).resolve().parents[2]
KINDS: Final = ("attachment", "text", "html", "both")
_MB: Final = 1_000_000
_PATIENCE_SECONDS: Final = 300.0


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goal, 1 above it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.delivery_memory", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be repeated; the default is all")
    parser.add_argument("--size", type=int, default=39_000_000, help="octets of a large mail")
    parser.add_argument("--goal", type=int, default=150, help="MB of 1,000,000 octets")
    options = parser.parse_args(arguments)
    worst = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        directory = Path(folder)
        for name in ("postgres", "ses"):
            (directory / name).mkdir()
        with Postgres(directory / "postgres", durable=False) as postgres, Ses(directory / "ses") as ses:
            template = create_database(postgres.url(), "contract")
            apply_schema(template)
            for kind in options.kind or KINDS:
                url = create_database(postgres.url(), f"kind_{kind}", "contract")
                peak, pss = measure(url, ses, (kind, kind), options.size, directory)
                worst = max(worst, pss)
                print(f"{kind:>10}: VmHWM {peak / _MB:.0f} MB, PSS {pss / _MB:.0f} MB at most", flush=True)
    return 0 if worst <= options.goal * _MB else 1


def measure(url: str, ses: Ses, kinds: tuple[str, str], size: int, directory: Path) -> tuple[int, int]:
    """The most octets, VmHWM and PSS, that a delivery process had while it sent two large mails and eighteen others."""
    ses.forget()
    execute(
        url,
        "INSERT INTO domains (id, name, status, track_clicks, track_opens, user_id)"
        " VALUES (%s, 'example.com', 'verified', true, true, 'user')",
        (str(uuid.uuid4()),),
    )
    for kind in kinds:
        add(url, **large(kind, size))
    for _ in range(18):
        add(url, text="Hello\n" * 100)
    log = directory / f"{'-'.join(kinds)}.log"
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        **ses.client_environment,
        "DATABASE_URL": url,
        "PYTHONPATH": str(ROOT),
        "TRACKING_SECRET": "a secret of sixteen",
        "TRACKING_BASE_URL": "https://app.example",
        "SMTP_RELAY_SPOOL_DIR": str(directory),
    }
    with log.open("wb") as output:
        command = [sys.executable, "-m", "relay.delivery"]
        service = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
        try:
            worker = _worker(service, log)
            with PeakRss(worker) as peak:
                _until(lambda: query(url, "SELECT count(*) FROM emails WHERE status = 'sent'") == [(20,)], log)
            high = _high_water(worker)
        finally:
            service.terminate()
            service.wait()
    return high, peak.octets


def large(kind: str, size: int) -> dict[str, object]:
    """The columns of a row whose mail has about so many octets."""
    link = '<p>A line of text with <a href="https://x.example/page?number=1&amp;more=2">a link</a> in it.</p>\n'
    html = "<p>A line of text without any link in it, for the most part of it.</p>\n"
    if kind == "attachment":
        return {"attachments": [{"filename": "a.pdf", "content": b64encode(os.urandom(size * 3 // 4)).decode()}]}
    if kind == "text":
        return {"text": "A line of text that has nothing special about it.\n" * (size // 50)}
    if kind == "html":
        return {"html": link * 10_000 + html * ((size - len(link) * 40_000) // len(html))}
    return {"text": "ä" * (size // 12), "html": "漢字" * (size // 12)}


def add(url: str, **columns: object) -> None:
    """Inserts a queued row."""
    row: dict[str, object] = {
        "id": str(uuid.uuid4()),
        "from": "ann@example.com",
        "to": ["to@x.example"],
        "subject": "Hello",
        "html": "",
        "text": "",
        "attachments": [],
        "user_id": "user",
    } | columns
    names = ", ".join(f'"{name}"' for name in row)
    values = [json.dumps(value) if isinstance(value, list) else value for value in row.values()]
    places = ", ".join(["%s"] * len(row))
    execute(url, f"INSERT INTO emails ({names}) VALUES ({places})", tuple(values))  # noqa: S608 - our own names


def add_alike(url: str, user_id: str, count: int) -> None:
    """Inserts so many queued rows of a user at once."""
    execute(
        url,
        'INSERT INTO emails (id, "from", "to", subject, html, text, attachments, user_id)'
        " SELECT gen_random_uuid(), 'ann@example.com', '[\"to@x.example\"]', 'Hello', '', '', '[]', %s"
        " FROM generate_series(1, %s)",
        (user_id, count),
    )


def _worker(service: subprocess.Popen[bytes], log: Path) -> int:
    """The delivery process among the service's."""
    _until(lambda: "delivery_ready" in log.read_text(), log)
    return max(processes.children(service.pid, recursive=True), key=lambda child: child.create_time()).pid


def _high_water(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel has no figure")


def _until(done: Callable[[], bool], log: Path) -> None:
    limit = time.monotonic() + _PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
