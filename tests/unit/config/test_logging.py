"""What a log line looks like, where it goes, and what never gets into one."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.logging import DANGEROUS, WITHHELD, withhold

ROOT = Path(__file__).resolve().parent.parent.parent.parent

#: Planted wherever a careless line might pick it up.
KEY = "os_live_0123456789abcdef"
ADDRESS = "someone.private@example.org"

PREAMBLE = """
import structlog
import config.logging
from config.settings import Settings
config.logging.configure(Settings(database_url="postgres://nowhere/x", log_level=LEVEL, log_format=FORMAT))
log = structlog.get_logger("test")
"""


def program(code: str, *, level: str = "info", form: str = "json") -> list[str]:
    return [sys.executable, "-c", f"LEVEL, FORMAT = {level!r}, {form!r}\n" + PREAMBLE + textwrap.dedent(code)]


def run(code: str, *, level: str = "info", form: str = "json", status: int = 0) -> str:
    """Everything that the program wrote, on either stream."""
    ended = subprocess.run(
        program(code, level=level, form=form), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def lines(code: str, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(code, **options).splitlines()]


def on_a_terminal(code: str, **variables: str) -> str:
    master, slave = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    process = subprocess.Popen(program(code, form="auto"), cwd=ROOT, env=environment | variables, stdout=slave)
    os.close(slave)
    received = b""
    while True:
        try:
            chunk = os.read(master, 10_000)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not chunk:
            break
        received += chunk
    os.close(master)
    assert process.wait(60) == 0
    return received.decode()


def test_one_json_object_a_line() -> None:
    (line,) = lines("log.bind(connection='c-1').info('message_accepted', email='3f8e', octets=12, late=None)")
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert moment.utcoffset() is not None
    assert moment.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert line == {
        "level": "info",
        "event": "message_accepted",
        "connection": "c-1",
        "email": "3f8e",
        "octets": 12,
        "late": None,
    }


def test_auto_is_json_without_a_terminal() -> None:
    assert lines("log.info('hello')", form="auto")[0]["event"] == "hello"


def test_levels() -> None:
    found = lines(
        "[getattr(log, level)(level) for level in ('debug', 'info', 'warning', 'error', 'critical')]", level="warning"
    )
    assert [line["level"] for line in found] == ["warning", "error", "critical"]


def test_a_level_that_is_not_written_costs_no_formatting() -> None:
    code = """
    class Costly:
        def __repr__(self):
            raise SystemExit("was formatted")
    log.debug("quiet", value=Costly())
    """
    assert run(code) == ""


def test_values_of_any_type() -> None:
    code = """
    import datetime, uuid
    log.info("x", moment=datetime.date(2024, 2, 3), id=uuid.UUID(int=1), odd=object(), numbers={1: 2}, octets=b"abc")
    log.info("y", half="a\\ud800b", huge=2**70, odd=object())
    """
    usual, rare = lines(code)
    assert usual["moment"] == "2024-02-03"
    assert (usual["odd"], usual["octets"]) == ("object", "bytes")
    assert usual["numbers"] == {"1": 2}
    assert (rare["half"], rare["huge"], rare["odd"]) == ("a\ud800b", 2**70, "object")


def test_text_on_a_terminal() -> None:
    shown = on_a_terminal("log.warning('certificate_reloaded', index=3)")
    assert "certificate_reloaded" in shown
    assert "\x1b[" in shown


def test_no_colours_where_they_are_not_wanted() -> None:
    assert "\x1b" not in on_a_terminal("log.warning('certificate_reloaded')", NO_COLOR="1")
    assert "\x1b" not in run("log.warning('certificate_reloaded')", form="text")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_client_can_not_forge_a_log_line(form: str) -> None:
    code = r"""
    log.info("x", reason="y\n2024-01-01T00:00:00Z [critical] forged\x1b[2J\r")
    import logging
    logging.getLogger("lib").warning("a\nforged b")
    """
    shown = run(code, form=form)
    assert len(shown.splitlines()) == 2
    assert "\x1b" not in shown


def test_errors_are_reported_without_their_text() -> None:
    code = f"""
    def deliver(recipient):
        raise ValueError(f"can't deliver to {{recipient}}")
    try:
        try:
            deliver("{ADDRESS}")
        except ValueError as error:
            raise KeyError("{KEY}") from error
    except KeyError:
        log.exception("unexpected_error")
    """
    shown = run(code)
    (line,) = [json.loads(each) for each in shown.splitlines()]
    assert line["level"] == "error"
    assert line["error"] == "KeyError from ValueError"
    assert line["traceback"] == ["<string>:15 <module>"]
    assert ADDRESS not in shown
    assert KEY not in shown


def test_text_shows_where_an_error_was_raised() -> None:
    shown = run(
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    log.error('odd', exc_info=error)", form="text"
    )
    assert "ZeroDivisionError" in shown
    assert "<string>:" in shown


def test_libraries_speak_the_same_way() -> None:
    code = f"""
    import logging, warnings
    logging.getLogger("botocore.hooks").info("quiet")
    logging.getLogger("urllib3.connection").warning("retrying %s", 3)
    logging.getLogger("redis").error("cannot reach %s", "{ADDRESS}")
    warnings.warn("old", UserWarning)
    """
    shown = run(code)
    retrying, unreachable, warned = (json.loads(line) for line in shown.splitlines())
    assert {line["event"] for line in (retrying, unreachable, warned)} == {"library_message"}
    assert (retrying["detail"], retrying["logger"]) == ("retrying 3", "urllib3.connection")
    assert (retrying["level"], unreachable["level"]) == ("warning", "error")
    assert unreachable["detail"] == "cannot reach %s"
    assert warned["logger"] == "py.warnings"
    assert ADDRESS not in shown


def test_uncaught_errors_become_lines() -> None:
    code = f"""
    import gc, gevent, sys, threading
    class Odd:
        def __del__(self):
            raise ValueError("{ADDRESS}")
    def fail(secret):
        raise ValueError(secret)
    gevent.spawn(fail, "{KEY}").join()
    thread = threading.Thread(target=fail, args=("{KEY}",))
    thread.start()
    thread.join()
    Odd()
    gc.collect()
    fail("{ADDRESS}")
    """
    shown = run(code, status=1)
    found = [json.loads(line) for line in shown.splitlines()]
    assert {line["event"] for line in found} == {"uncaught_error"}
    assert [line["where"] for line in found] == ["greenlet", "thread", "destructor", "main"]
    assert {line["level"] for line in found} == {"critical"}
    assert all("fail" in line["traceback"][-1] or "__del__" in line["traceback"][-1] for line in found)
    assert ADDRESS not in shown
    assert KEY not in shown


def test_a_log_without_a_reader_does_not_stop_the_mail() -> None:
    code = """
    import os, sys
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(1)
    os.dup2(writer, 1)
    log.info("into the void")
    log.info("once more")
    os.dup2(kept, 1)
    log.info("heard", lost=config.logging.LineLogger.lost)
    """
    line, told = lines(code)
    assert line["lost"] == 2
    assert (told["event"], told["count"]) == ("log_lines_lost", 2)


def test_a_log_whose_reader_has_stopped_does_not_stop_the_mail() -> None:
    code = """
    import os
    reader, writer = os.pipe()
    kept = os.dup(1)
    os.dup2(writer, 1)
    config.logging.LineLogger.look_at_outlet()
    for number in range(2000):
        log.info("accepted", number=number)
    in_pipe = os.read(reader, 1 << 20)
    log.info("accepted", number=2000)
    in_pipe += os.read(reader, 1 << 20)
    os.dup2(kept, 1)
    os.write(1, in_pipe)
    """
    found = lines(code)
    written = [line["number"] for line in found if line["event"] == "accepted"]
    kept = len(written) - 1
    assert 100 < kept < 2000
    assert written == [*range(kept), 2000]
    assert [line["count"] for line in found if line["event"] == "log_lines_lost"] == [2000 - kept]


@pytest.mark.parametrize("name", sorted(DANGEROUS))
def test_dangerous_names_are_withheld(name: str) -> None:
    assert withhold(None, "info", {"event": "x", name: "anything"})[name] == WITHHELD
    assert withhold(None, "info", {"event": "x", name: ["anything"]})[name] == WITHHELD


def test_counts_and_ids_are_not_withheld() -> None:
    line = {"event": "message_accepted", "recipients": 3, "email": "8d3c", "connection": "c-1", "code": 250, "x": None}
    assert withhold(None, "info", dict(line)) == line


_TEXT = st.text(max_size=20)


@given(
    before=_TEXT, after=_TEXT, planted=st.sampled_from([KEY, ADDRESS]), nest=st.sampled_from([str, list, dict, tuple])
)
def test_addresses_and_keys_are_withheld_wherever_they_are(before: str, after: str, planted: str, nest: type) -> None:
    text = before + planted + after
    value: object = text
    if nest is list:
        value = ["fine", text]
    elif nest is dict:
        value = {"deep": {"deeper": text}}
    elif nest is tuple:
        value = (1, (text,))
    line = withhold(None, "info", {"event": text, "detail": value})
    assert planted.encode() not in orjson.dumps(line)
