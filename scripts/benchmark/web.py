"""`python -m scripts.benchmark.web`: what a click and an event of SES cost, beside a handler of Flask and psycopg2.

Each click comes on a separate connection, as from mail programs; SNS keeps its connections. The figures are CPU of
the serving process alone (all that Postgres and the clients take is left out), and events a second as they came in this
run.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.web instead.")

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from relay.core.tracking_token import TrackingTokens
from scripts.database import apply_schema, create_database, create_webhook, execute, query
from scripts.services import Postgres, Valkey, Web, free_port, processes
from scripts.services.sns_double import TOPIC, SnsDouble, ses_message

#: The most that a click may cost, as a part of what it costs the plain handler; and milliseconds of CPU.
GOAL: Final = 0.5
MOST_MS: Final = 1.0
_SECRET: Final = "a secret of sixteen"  # noqa: S105 - of this run alone
_CLIENTS: Final = 16
_YARDSTICK: Final = Path(__file__).resolve().parents[1] / "yardstick" / "clicks.py"


def main(arguments: list[str]) -> int:
    """The exit status: 0 within the goals, 1 beyond them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmark.web", description=__doc__)
    parser.add_argument("--clicks", type=int, default=6000)
    parser.add_argument("--events", type=int, default=3000)
    options = parser.parse_args(arguments)
    with _servers() as (url, redis_url, sns, directory):
        emails, domain_id = _rows(url)
        settings = {
            "DATABASE_URL": url,
            "REDIS_URL": redis_url,
            "TRACKING_SECRET": _SECRET,
            "SES_EVENTS_SNS_TOPIC_ARN": TOPIC,
            "SMTP_RELAY_MAX_CONNECTIONS_PER_ADDRESS": "1000",
        }
        tokens = TrackingTokens(_SECRET)
        about = {"v": 1, "kind": "click", "userId": "user", "domainId": domain_id, "recipient": "to@x.example"}
        paths = [
            f"/api/track/click/{tokens.make({**about, 'emailId': email_id, 'targetUrl': 'https://x.example/?a=1&b=2'})}"
            for email_id in emails
        ]
        with Web(directory / "web", settings, sns=(str(sns.cafile), sns.port)) as web:
            (process,) = processes.serving(web.pid)
            _clicks(web.port, paths[:200])
            ours = _measured(
                "clicks", process, len(paths[: options.clicks]), lambda: _clicks(web.port, paths[: options.clicks])
            )
            bodies = [
                json.dumps(sns.notification(ses_message("Delivery", email_id, ["to@x.example"]))).encode()
                for email_id in emails[: options.events]
            ]
            _posts(web.port, bodies[:100])
            _measured("events of SES", process, len(bodies), lambda: _posts(web.port, bodies))
        recorded = query(url, "SELECT type, count(*) FROM email_events GROUP BY type ORDER BY type")
        print("recorded:", recorded)
        with _yardstick(url) as (port, process):
            _clicks(port, paths[:200])
            theirs = _measured(
                "clicks, plain handler", process, options.clicks, lambda: _clicks(port, paths[: options.clicks])
            )
    print(f"a click takes {ours / theirs:.2f} of the CPU of the plain handler (goal: {GOAL})")
    return 0 if ours / theirs <= GOAL and ours <= MOST_MS else 1


def _measured(name: str, process: psutil.Process, count: int, work: Callable[[], None]) -> float:
    """Milliseconds of the process's CPU for one of them."""
    before, began = process.cpu_times(), time.monotonic()
    work()
    after, seconds = process.cpu_times(), time.monotonic() - began
    spent = 1000 * (after.user + after.system - before.user - before.system) / count
    print(f"{name:>22}: {spent:.3f} ms of CPU each, {count / seconds:,.0f} a second", flush=True)
    return spent


def _shared(items: Sequence[object], work: Callable[[Iterator[object]], None]) -> None:
    """By several clients at a time."""
    each, lock = iter(items), threading.Lock()

    def locked() -> Iterator[object]:
        while True:
            with lock:
                item = next(each, None)
            if item is None:
                return
            yield item

    threads = [threading.Thread(target=work, args=(locked(),)) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _clicks(port: int, paths: Sequence[str]) -> None:
    def client(mine: Iterator[object]) -> None:
        for path in mine:
            request = (
                f"GET {path} HTTP/1.1\r\nHost: relay.example\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
                "Accept: text/html\r\nAccept-Language: en\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(request.encode())
                answer = connection.recv(4096)
                if b" 302 " not in answer[:16]:
                    raise RuntimeError("not redirected")

    _shared(paths, client)


def _posts(port: int, bodies: Sequence[bytes]) -> None:
    def client(mine: Iterator[object]) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            for body in mine:
                headers = {"Content-Type": "text/plain", "x-amz-sns-message-type": "Notification"}
                connection.request("POST", "/events/ses", body, headers)  # type: ignore[arg-type]
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    raise RuntimeError(f"answered {response.status}")

    _shared(bodies, client)


def _rows(url: str) -> tuple[list[str], str]:
    """Mails and a domain of one user, with a webhook."""
    domain_id = str(uuid.uuid4())
    execute(
        url,
        "INSERT INTO domains (id, name, status, track_clicks, user_id)"
        " VALUES (%s, 'example.com', 'verified', true, 'user')",
        (domain_id,),
    )
    execute(
        url,
        'INSERT INTO emails (id, "from", "to", subject, status, user_id)'
        " SELECT gen_random_uuid(), 'a@example.com', '[\"to@x.example\"]', 'Subject', 'sent', 'user'"
        " FROM generate_series(1, 10000)",
    )
    create_webhook(url, "email.clicked", "email.delivered")
    execute(url, "ANALYZE emails")
    return [str(row[0]) for row in query(url, "SELECT id::text FROM emails")], domain_id


@contextmanager
def _yardstick(url: str) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    environment = os.environ | {"DATABASE_URL": url, "TRACKING_SECRET": _SECRET}
    process = subprocess.Popen(
        [sys.executable, "-P", str(_YARDSTICK), str(port)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _servers() -> Iterator[tuple[str, str, SnsDouble, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - Postgres may have to be another user
        directory = Path(folder)
        for name in ("postgres", "valkey", "web"):
            (directory / name).mkdir()
        with (
            Postgres(directory / "postgres", durable=False) as postgres,
            Valkey(directory / "valkey") as valkey,
            SnsDouble(directory / "sns") as sns,
        ):
            url = create_database(postgres.url(), "web")
            apply_schema(url)
            yield url, valkey.url, sns, directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
