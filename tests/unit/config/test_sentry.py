"""Error reports as they arrive at a Sentry of the test's own, over HTTP: enough to find the fault, nothing personal."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import sentry
from tests.support.sentry_endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent.parent.parent

#: Planted wherever a careless report might pick it up.
KEY = "os_live_0123456789abcdef"
ADDRESS = "someone.private@example.org"
PASSWORD = "hunter2"

PREAMBLE = f"""
from gevent import monkey
monkey.patch_all()
import structlog
import config.logging, config.sentry
from config.settings import Settings
KEY, ADDRESS = {KEY!r}, {ADDRESS!r}
settings = Settings(database_url="postgres://u:{PASSWORD}@db/x", sentry_dsn=DSN, hostname="mail.example")
config.logging.configure(settings)
config.sentry.init(settings, "0.0.0")
log = structlog.get_logger("test")
"""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def run(dsn: str | None, code: str, *arguments: str, status: int = 0) -> str:
    """Everything that the program wrote."""
    program = f"DSN = {dsn!r}\n{PREAMBLE}{textwrap.dedent(code)}\nconfig.sentry.flush()\n"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    return ended.stdout


def test_nothing_personal_leaves(endpoint: Endpoint) -> None:
    code = """
    import logging, gevent

    class Connection:
        def __init__(self, key): self.key = key
        def __repr__(self): return self.key

    def insert(row, connection):
        line = f"AUTH PLAIN {connection}"
        raise ValueError(f"row {row} of {line}")

    def deliver(address):
        connection = Connection(KEY)
        try:
            insert({"to": address}, connection)
        except ValueError as error:
            raise RuntimeError(address) from error

    logging.getLogger("lib").warning("about %s", ADDRESS)
    logging.getLogger("lib").error("about %s", KEY)
    log.warning("quiet", address=ADDRESS)
    try:
        deliver(ADDRESS)
    except RuntimeError:
        log.exception("unexpected_error", sender=ADDRESS, note=f"from {ADDRESS}", token=KEY)
    gevent.spawn(deliver, ADDRESS).join()
    log.error("certificate_not_reloaded", reason=f"path of {ADDRESS}")
    """
    run(endpoint.dsn, code, "--argument", KEY)
    sent = b"\n".join(endpoint.bodies).decode()
    for planted in (KEY, KEY[:12], ADDRESS, ADDRESS.split("@", maxsplit=1)[0], PASSWORD, "AUTH PLAIN"):
        assert planted not in sent
    messages = [event["logentry"]["message"] for event in endpoint.events]
    assert messages == ["unexpected_error", "uncaught_error", "certificate_not_reloaded"]
    inner, outer = endpoint.events[0]["exception"]["values"]
    assert (inner["type"], outer["type"]) == ("ValueError", "RuntimeError")
    assert (inner["value"], outer["value"]) == ("", "")
    functions = [frame["function"] for frame in inner["stacktrace"]["frames"]]
    assert functions == ["deliver", "insert"]
    assert all("vars" not in frame for frame in inner["stacktrace"]["frames"])
    assert endpoint.events[0]["server_name"] == "mail.example"
    assert endpoint.events[0]["release"].startswith("opensend-relay@")
    assert not {"breadcrumbs", "request", "user", "extra", "contexts", "modules", "tags"} & set(endpoint.events[0])


def test_codes_that_help_are_kept(endpoint: Endpoint) -> None:
    code = """
    try:
        open("/nowhere/" + KEY)
    except OSError:
        log.exception("spool failed")
    """
    run(endpoint.dsn, code)
    (event,) = endpoint.events
    assert event["exception"]["values"][0]["value"] == "ENOENT"
    assert KEY not in str(endpoint.bodies)


def test_the_same_fault_is_reported_once_in_a_while(endpoint: Endpoint) -> None:
    code = """
    for number in range(50):
        try:
            {}[number]
        except KeyError:
            log.exception("unexpected_error")
    log.error("another")
    """
    shown = run(endpoint.dsn, code)
    assert len(shown.splitlines()) == 51
    assert [event["logentry"]["message"] for event in endpoint.events] == ["unexpected_error", "another"]


def test_the_error_that_ends_a_process_is_reported(endpoint: Endpoint) -> None:
    run(endpoint.dsn, "raise ValueError(KEY)", status=1)
    (event,) = endpoint.events
    assert event["logentry"]["message"] == "uncaught_error"
    assert event["exception"]["values"][0]["type"] == "ValueError"
    assert KEY not in str(endpoint.bodies)


def test_warnings_and_libraries_are_not_reported(endpoint: Endpoint) -> None:
    run(endpoint.dsn, "import logging\nlogging.getLogger('lib').critical('x')\nlog.warning('y')\nlog.info('z')")
    assert endpoint.bodies == []


def test_a_sentry_that_is_down_holds_nothing_up() -> None:
    code = """
    import time
    log.error("unreachable")
    began = time.monotonic()
    config.sentry.flush()
    log.info("flushed", late=time.monotonic() - began > config.sentry.FLUSH_SECONDS + 5)
    """
    shown = run("http://public@127.0.0.1:1/1", code)
    assert json.loads(shown.splitlines()[-1])["late"] is False


def test_without_a_dsn_the_library_is_not_even_imported() -> None:
    run(None, "import sys\nlog.error('x')\nassert 'sentry_sdk' not in sys.modules")


def test_unknown_fields_are_dropped() -> None:
    event = {
        "event_id": "1",
        "message": ADDRESS,
        "extra": {"sys.argv": [KEY]},
        "logentry": {"message": "fixed text", "params": [KEY]},
        "exception": {
            "values": [
                {
                    "type": "ValueError",
                    "module": None,
                    "value": ADDRESS,
                    "mechanism": {"data": {"x": KEY}},
                    "stacktrace": {
                        "frames": [{"function": "f", "lineno": 1, "vars": {"key": KEY}, "abs_path": "/home/x"}]
                    },
                }
            ]
        },
    }
    scrubbed = sentry.scrub(event, {})  # type: ignore[arg-type]
    assert scrubbed == {
        "event_id": "1",
        "logentry": {"message": "fixed text"},
        "exception": {
            "values": [
                {
                    "type": "ValueError",
                    "module": None,
                    "value": "",
                    "stacktrace": {"frames": [{"function": "f", "lineno": 1}]},
                }
            ]
        },
    }
