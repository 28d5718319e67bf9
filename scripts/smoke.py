"""`./scripts/launch smoke`: does `./scripts/dev` keep its promises to a newcomer? Starts it for real, in this checkout.

Exit status 0: a mail was sent with the printed key and each of the printed lines, its rows are in Postgres, and nothing
was left running.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch smoke instead.")

import argparse
import contextlib
import re
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
from pathlib import Path
from typing import IO

from scripts.database import query
from scripts.services import free_port, processes

ROOT = Path(__file__).resolve().parent.parent
#: The end of what `./scripts/dev` prints once everything is up.
LAST_LINE = "Ctrl-C stops all."
MESSAGE = "From: ann@example.com\r\nTo: bob@example.com\r\nSubject: Smoke\r\n\r\nIs there fire?\r\n"


def main(arguments: list[str]) -> int:
    """The exit status."""
    argparse.ArgumentParser(prog="./scripts/launch smoke", description=__doc__).parse_args(arguments)
    port = free_port()
    with subprocess.Popen(
        [str(ROOT / "scripts" / "dev"), "--port", str(port), "--no-color"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as dev:
        assert dev.stdout is not None
        try:
            printed = _until_up(dev.stdout)
            family = processes.family(dev.pid)
            before = _rows()
            sent = _send(printed, port)
            found = _rows() - before
        finally:
            with contextlib.suppress(ProcessLookupError):
                dev.send_signal(signal.SIGINT)
            print(dev.stdout.read(), end="")
            exit_status = dev.wait(60)
    left = [process for process in family if not processes.ended(process)]
    print(f"{sent} mails sent, {found} rows found, exit status {exit_status}, {len(left)} processes left running")
    return 0 if sent == found and exit_status == 0 and not left else 1


def _until_up(output: IO[str]) -> str:
    lines = []
    for line in output:
        print(line, end="", flush=True)
        lines.append(line)
        if LAST_LINE in line:
            return "".join(lines)
    raise SystemExit("./scripts/dev ended before it was up")


def _send(printed: str, port: int) -> int:
    """Sends one mail by ourselves and one by each printed line, and returns how many went out."""
    key = re.search(r"API key\s+(os_live_\S+)", printed)
    user_name = re.search(r"User name\s+(\S+)", printed)
    assert key is not None
    assert user_name is not None
    context = ssl.create_default_context(cafile=str(ROOT / ".dev" / "tls" / "certificate.pem"))
    with smtplib.SMTP("127.0.0.1", port, "localhost", timeout=30) as client:
        client.starttls(context=context)
        client.login(user_name[1], key[1])
        client.sendmail("ann@example.com", ["bob@example.com"], MESSAGE)
    lines = [line for line in printed.splitlines() if line.startswith(("printf ", "python3 "))]
    assert len(lines) == 2, "a line to paste is missing"
    runnable = [line for line in lines if line.startswith("python3") or shutil.which("curl")]
    for line in runnable:
        subprocess.run(["sh", "-c", line], check=True, timeout=60)
    return 1 + len(runnable)


def _rows() -> int:
    environment = (ROOT / ".dev" / "environment").read_text()
    database_url = re.search(r"DATABASE_URL='(.*)'", environment)
    assert database_url is not None
    counted = query(database_url[1], "SELECT count(*) FROM emails")
    return int(str(counted[0][0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
