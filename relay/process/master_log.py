"""The master's lines in the service's log. Nothing but the standard library: the master imports this."""

from __future__ import annotations

import select
import time

from config.line_output import append, write_line

TYPE_CHECKING = False  # as in typing, which the master would have for this alone
if TYPE_CHECKING:
    from typing import Final

#: How long the master waits for a reader of the log that has fallen behind; seconds.
_PATIENCE_SECONDS: Final = 0.1


class MasterLog:
    """Writes lines in the form that `config.logging` gives the workers' lines."""

    def __init__(self, *, json_lines: bool) -> None:
        self._json_lines = json_lines
        #: Lines that could not be written, and that no line has reported yet.
        self._lost = 0
        append()

    def say(self, level: str, event: str, **fields: int | float | str) -> None:
        """One line. Values are numbers and words of our own, so that nothing needs escaping. Does not raise."""
        if not self._write(level, event, fields):
            # The reader of the log may be gone, or the disk may be full. That is no reason to give up the mail.
            self._lost += 1
        elif self._lost and self._write("warning", "log_lines_lost", {"count": self._lost}):
            self._lost = 0

    def _write(self, level: str, event: str, fields: dict[str, int | float | str]) -> bool:
        now = time.time()
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
        if self._json_lines:
            members = "".join(
                f',"{name}":{value}' if isinstance(value, int | float) else f',"{name}":"{value}"'
                for name, value in fields.items()
            )
            line = f'{{"timestamp":"{moment}","level":"{level}","event":"{event}","process":"master"{members}}}'
        else:
            line = f"{moment} [{level:<8}] {event:<36} " + " ".join(f"{name}={value}" for name, value in fields.items())
        return self._takes_a_line() and write_line(line.rstrip().encode("ascii") + b"\n")

    @staticmethod
    def _takes_a_line() -> bool:
        """Whether standard output takes a line now: a reader that has stopped to read must not stop the master."""
        try:
            return bool(select.select([], [1], [], _PATIENCE_SECONDS)[1])
        except (OSError, ValueError):
            return False
