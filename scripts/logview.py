"""The relay's log for a person: one short line for each message, and for whatever else is worth a line."""

from __future__ import annotations

if not __package__:
    raise SystemExit("This is a part of ./scripts/dev, and no command.")

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from relay.core.json_document import Json
from scripts.terminal import printable

#: What each line begins with: the level's style, see the caller's `paint`.
_STYLES = {"warning": "yellow", "error": "red", "critical": "red"}
#: Shown in front, or of no use on a development machine.
_SHOWN_APART = frozenset(("event", "level", "timestamp", "traceback"))


class LogView:
    """Follows a log file of JSON lines that another process appends to."""

    def __init__(self, path: Path, paint: Callable[[str, str], str], mails: Path | None = None) -> None:
        """`paint(text, style)` colours; the file may not be there yet. `mails`: where delivered mails become files."""
        self._mails = mails
        self._path = path
        self._paint = paint
        self._offset = 0

    def new_lines(self) -> Iterator[str]:
        """What was appended since the last call, line by line, without a line that is still being written."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset)
                appended = log.read()
        except FileNotFoundError:
            return
        whole = appended[: appended.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            yield self._readable(line)

    def _readable(self, line: str) -> str:
        try:
            entry: dict[str, Json] = {printable(name): _visible(value) for name, value in json.loads(line).items()}
            time = datetime.fromisoformat(str(entry["timestamp"])).astimezone().strftime("%H:%M:%S")
            event, level = str(entry["event"]), str(entry["level"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return printable(line)  # not one of the relay's own
        if event == "message_accepted":
            what = self._paint("accepted", "green")
            return f"{time}  {what}  {entry.get('email')}  {_size(entry)}, {_recipients(entry)}{_outcome(entry)}"
        if event == "message_refused":
            what = self._paint("refused ", "yellow")
            return f"{time}  {what}  {entry.get('code')}  {_size(entry)}, {_recipients(entry)}{_outcome(entry)}"
        if event == "delivery":
            outcome = str(entry.get("outcome"))
            what = self._paint(f"{outcome:<8}", "green" if outcome == "sent" else "yellow")
            file = self._mails / f"{entry.get('email_id')}.eml" if self._mails is not None else ""
            return f"{time}  {what}  {entry.get('email_id')}  {file}".rstrip()
        fields = " ".join(f"{name}={value}" for name, value in entry.items() if name not in _SHOWN_APART)
        return f"{time}  {self._paint(event, _STYLES.get(level, 'dim'))}  {fields}".rstrip()


def _number(value: Json) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _visible(value: Json) -> Json:
    """A field's value, without characters that a terminal acts upon: names of a mail's header fields may have any."""
    return value if isinstance(value, int | float | None) else printable(str(value))


def _size(entry: Mapping[str, Json]) -> str:
    octets = _number(entry.get("octets"))
    return f"{octets} octets" if octets < 10_000 else f"{octets / 1000:,.0f} kB"


def _recipients(entry: Mapping[str, Json]) -> str:
    count = _number(entry.get("recipient_count"))
    return "1 recipient" if count == 1 else f"{count} recipients"


def _outcome(entry: Mapping[str, Json]) -> str:
    outcome = entry.get("outcome")
    return f", {outcome}" if outcome and outcome not in ("queued", "accepted") else ""
