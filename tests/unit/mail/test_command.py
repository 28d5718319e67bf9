"""`python -m relay.mail`: what an operator sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.mail_corpus import CORPUS


def _run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "relay.mail", *arguments], input=stdin, capture_output=True, check=False
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


def test_prints_what_would_be_stored() -> None:
    code, out, err = _run(str(CORPUS / "libraries" / "python-everything.eml"))
    stored = json.loads(out)
    assert (code, err) == (0, "")
    assert stored["to"] == ["bo@reader.example"]
    assert [each["filename"] for each in stored["attachments"]] == ["logo.png", "Bericht März.pdf"]
    assert stored["attachments"][1]["content"].endswith("… (1036 characters)")


def test_full_shows_attachments_to_the_end() -> None:
    _, out, _ = _run("--full", str(CORPUS / "libraries" / "python-everything.eml"))
    assert len(json.loads(out)["attachments"][1]["content"]) == 1036


def test_reads_standard_input_and_says_why_it_refuses() -> None:
    code, out, _ = _run("-", stdin=b"Subject: no sender\r\n\r\n")
    assert (code, json.loads(out)["refused"]) == (1, "no_from")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    code, out, err = _run(str(tmp_path / "none.eml"))
    assert (code, out, err.count("\n")) == (2, "", 1)
