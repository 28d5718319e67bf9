"""What a person sees of rows, logs and messages on a terminal holds no character that the terminal acts upon."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.mail.__main__ import main as describe
from scripts import look
from scripts.logview import LogView
from scripts.terminal import printable

ROOT = Path(__file__).resolve().parents[2]
#: Escape sequences, line ends of all kinds, C1, marks of direction, half a surrogate pair, a tag character.
PIECES = ["\x1b[2J", "\x07", "\r", "\n", "\x7f", "\x9b", "\u2028", "\u202e", "�", "\U000e0041", "a", "é", "\\"]
HOSTILE = st.lists(st.sampled_from(PIECES)).map("".join)


@given(HOSTILE | st.text())
def test_nothing_of_a_text_but_visible_characters_is_left(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) is text.isprintable()


@given(HOSTILE, HOSTILE)
def test_a_row_is_one_visible_line_in_the_list_and_whole(text: str, other: str) -> None:
    row: look.Row = {
        "id": "1",
        "status": "queued",
        "created_at": datetime.now(UTC),
        "from": text,
        "to": [text, other],
        "cc": other,
        "bcc": None,
        "subject": other,
        "type": text,
        "received_at": None,
        "payload": {text: [other]},
    }
    lines = [look.listed(row), look.event(row), *look.whole(row)]
    assert all(line.isprintable() for line in lines)


@settings(max_examples=50)
@given(HOSTILE)
def test_a_line_of_the_log_is_one_visible_line(text: str) -> None:
    fields = {"timestamp": "2026-11-27T12:47:45.796Z", "level": "info", "names": [text], "outcome": text, text: 1}
    events = ("headers_dropped", "message_accepted", "message_refused", "delivery", text)
    lines = [json.dumps({**fields, "event": event}).encode() for event in events]
    lines.append(text.replace("\n", "").encode("utf-8", "replace"))
    with tempfile.NamedTemporaryFile() as log:
        log.write(b"".join(line + b"\n" for line in lines))
        log.flush()
        shown = list(LogView(Path(log.name), lambda text, _: text).new_lines())
    assert len(shown) >= len(events)
    assert all(line.isprintable() for line in shown)


@pytest.mark.parametrize("octets", [b"\x1b[2J", b"\xc2\x9b31m", b"\xe2\x80\xae", b"\x7f", b"\xe2\x80\xa8"])
def test_what_would_be_stored_is_shown_in_visible_characters(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "mail.eml"
    head = b"From: a@b.example\r\nTo: c@d.example\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    path.write_bytes(head + b"x" + octets + b"y\r\n")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert describe([str(path)]) == 0
    assert all(line.isprintable() for line in said.getvalue().split("\n"))
    assert octets.decode() in json.loads(said.getvalue())["text"]


@pytest.mark.parametrize("command", ["smoke", "charset_labels", "look", "web_with_double"])
def test_help_is_help_and_does_nothing(command: str) -> None:
    written = ROOT / "relay" / "mail" / "charset_labels.py"
    before = written.stat().st_mtime_ns
    ended = subprocess.run(
        [sys.executable, "-P", "-m", f"scripts.{command}", "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0
    assert "usage:" in ended.stdout
    assert written.stat().st_mtime_ns == before
