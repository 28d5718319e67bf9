"""The corpus of messages, and the form in which what is expected of each stands beside it.

Run as a program it writes the expected form of the messages named, or of those that have none yet. What it writes is to
be read by eye.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from relay.mail import Unusable, parse

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
#: Octets of an attachment up to which it is written out rather than hashed.
_WRITTEN_OUT = 60


def messages() -> list[Path]:
    """Every message of the corpus, in a fixed order."""
    return sorted(CORPUS.glob("*/*.eml"))


def stored_form(raw: bytes) -> dict[str, Any]:
    """What would be stored of a message, or why it is refused, in what JSON can hold."""
    try:
        message = parse(raw)
    except Unusable as unusable:
        return {"refused": unusable.fault.value, "detail": unusable.detail}
    form = {name: value for name, value in dataclasses.asdict(message).items() if value or name in ("text", "subject")}
    if "attachments" in form:
        form["attachments"] = [_attachment(each) for each in form["attachments"]]
    return form


def _attachment(stored: dict[str, Any]) -> dict[str, Any]:
    octets = base64.b64decode(stored.pop("content"), validate=True)
    form = {name: value for name, value in stored.items() if value is not None}
    form["octets"] = len(octets)
    if len(octets) <= _WRITTEN_OUT:
        form["content"] = octets.decode("latin-1")
    else:
        form["sha256"] = hashlib.sha256(octets).hexdigest()
    return form


def write(path: Path) -> None:
    """Writes the expected form of one message beside it."""
    text = json.dumps(stored_form(path.read_bytes()), indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    for message in [Path(name) for name in sys.argv[1:]] or [
        each for each in messages() if not each.with_suffix(".json").exists()
    ]:
        write(message)
