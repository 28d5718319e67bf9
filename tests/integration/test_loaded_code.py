"""A service whose code and libraries' files change while it runs, and one whose Postgres wants TLS."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from scripts.database import NewApiKey
from scripts.services import free_port
from tests.support.certificates import write_pair
from tests.support.relay_process import Relay
from tests.support.service_process import PATIENCE, eventually

ROOT = Path(__file__).resolve().parent.parent.parent
Query = Callable[..., list[dict[str, Any]]]
SMALL = b"From: ann@example.com\r\nTo: to@x.example\r\nSubject: small\r\n\r\nText.\r\n"
LARGE = SMALL.replace(b"small", b"large") + b"Text of a large message.\r\n" * 4_000


class CopiedRelay(Relay):
    """Runs a copy of the code, which may be broken."""

    def __init__(self, code: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._code = code

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self._code), "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-c",
            f"import os, sys; os.chdir({str(self._code)!r}); "
            "from relay.__main__ import main; raise SystemExit(main([]))",
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers load the code that is in the files")
@pytest.mark.parametrize("harm", ["broken", "gone"])
def test_a_replaced_worker_runs_the_code_of_the_start(
    tmp_path: Path, postgres_url: str, redis_url: str, api_key: NewApiKey, query: Query, harm: str
) -> None:
    code = tmp_path / "code"
    for folder in ("relay", "config"):
        shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    settings = {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "SMTP_RELAY_SPOOL_THRESHOLD_BYTES": "50000",
        "SMTP_RELAY_KEY_MESSAGES_PER_MINUTE": "1000",
        "SMTP_RELAY_METRICS_PORT": str(free_port()),
        "SENTRY_DSN": f"http://key@127.0.0.1:{free_port()}/1",
    }
    relay = CopiedRelay(code, tmp_path / "relay", settings)
    relay.start()
    try:
        for file in code.rglob("*.py"):
            if harm == "broken":
                file.write_text("this is no Python\n")
            else:
                file.unlink()
        for round_number in range(1, 3):
            (worker,) = relay.workers()
            worker.kill()
            eventually("another", lambda old=worker: relay.workers() not in ([], [old]) and relay.answers())
            with relay.client(api_key.token) as client:
                for message in (SMALL, LARGE):
                    client.sendmail("ann@example.com", ["to@x.example"], message + b"%d\r\n" % round_number)
        assert len(query("SELECT 1 FROM emails")) == 4
    finally:
        relay.stop()
    assert "SyntaxError" not in relay.log
    assert "ModuleNotFoundError" not in relay.log


TEMPLATE = """
import ast, importlib, os, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path.insert(0, sys.argv[1])
from config.settings import Settings
settings = Settings(database_url="postgres://nobody@127.0.0.1:1/none", queue_url="http://127.0.0.1:1/q",
                    metrics_port=1, delivery_metrics_port=1, http_metrics_port=1, key_messages_per_minute=1,
                    sentry_dsn="http://key@127.0.0.1:1/1")
importlib.import_module(sys.argv[2]).load(settings.to_json())
loaded = dict(sys.modules)

import threading
import gevent._hub_local
assert gevent._hub_local.get_hub_if_exists() is None
assert threading.active_count() == 1
assert "rich" not in loaded or loaded["rich"] is None

def imported(function):
    for node in ast.walk(function):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            names = [f"{node.module}.{each.name}" for each in node.names]
            yield from (name for name in names if root.joinpath(*name.split(".")).with_suffix(".py").exists())

for name, module in loaded.items():
    # What the modules of the master's children import is for the first child, and for the template.
    if name.partition(".")[0] not in ("relay", "config") or not module.__file__ or name.endswith("children"):
        continue
    # Of the package that reads mail, the way out calls what encodes words.
    if name.startswith("relay.mail") and sys.argv[2] != "relay.process.children":
        continue
    text = Path(module.__file__).read_text("utf-8")
    if any(line.lstrip().startswith(("import ", "from ")) and line[0] == " " for line in text.splitlines()):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                print(*(f"{name}.{node.name}:{each}" for each in imported(node) if each not in loaded))
"""


@pytest.mark.parametrize("service", ["children", "delivery_children", "web_children"])
def test_what_a_template_loads_is_all_and_starts_no_hub_and_no_thread(service: str) -> None:
    """Neither would outlive the fork. And with no setting is anything left that a function would import after it."""
    ended = subprocess.run(
        [sys.executable, "-c", TEMPLATE, str(ROOT), f"relay.process.{service}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == []


ALL_MAILS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from config.settings import Settings
from relay.process import children
children.load(Settings(database_url="postgres://nobody@127.0.0.1:1/none", queue_url="http://127.0.0.1:1/q").to_json())
from relay.mail import parse
before = set(sys.modules)
read = 0
for path in Path(sys.argv[1], "tests", "corpus").rglob("*"):
    if path.is_file():
        try:
            parse(path.read_bytes())
        except Exception:
            continue  # refused
        read += 1
assert read > 50, read
print(*sorted(set(sys.modules) - before))
"""


def test_no_mail_makes_a_worker_load_anything() -> None:
    """Not even a charset of the standard library: its files may be those of another Python by then."""
    ended = subprocess.run(
        [sys.executable, "-c", ALL_MAILS, str(ROOT)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == []


# Postgres over TLS: psycopg2-binary has a separate OpenSSL, which must not be told what ours is told.


@contextlib.contextmanager
def tls_before(url: str, pair: tuple[str, str], curve: str | None) -> Iterator[int]:
    """A server that does TLS as Postgres does, and hands on what it hears to a real Postgres that doesn't.

    The wheel's Postgres is built without OpenSSL. `curve`: the one group that this server takes.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    if curve is not None:
        context.set_ecdh_curve(curve)
    target = urlsplit(url)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            assert client.recv(8) == b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # SSLRequest
            client.sendall(b"S")
            with (
                context.wrap_socket(client, server_side=True) as secured,
                socket.create_connection((target.hostname, target.port)) as server,
            ):
                back = threading.Thread(target=pass_on, args=(server, secured), daemon=True)
                back.start()
                pass_on(secured, server)
                back.join(PATIENCE)

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(65536):
                sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("curve", [None, "secp521r1"])
def test_postgres_with_sslmode_require(
    start_relay: Callable[..., Relay],
    postgres_url: str,
    redis_url: str,
    api_key: NewApiKey,
    query: Query,
    tmp_path: Path,
    curve: str | None,
) -> None:
    pair = write_pair(tmp_path / "pair")
    with tls_before(postgres_url, pair, curve) as port:
        parts = urlsplit(postgres_url)
        url = f"postgresql://{parts.username}:{parts.password}@127.0.0.1:{port}{parts.path}?sslmode=require"
        relay = start_relay(
            DATABASE_URL=url, REDIS_URL=redis_url, SMTP_RELAY_TLS_CERT_PATH=pair[0], SMTP_RELAY_TLS_KEY_PATH=pair[1]
        )
        with relay.client() as client:
            client.starttls()
            client.ehlo("client.example")
            client.login("opensend", api_key.token)
            client.sendmail("ann@example.com", ["to@x.example"], SMALL)
        assert len(query("SELECT 1 FROM emails")) == 1
        relay.stop()
