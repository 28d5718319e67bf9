"""How `--check` of either program goes: the settings, then each part, a line for each finding, the exit status.

Nothing that is printed holds a text of a library's, so no part of a URL; and it ends within ten seconds whatever hangs.
To be imported once the standard library is patched.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import gevent
import structlog

from config import environment, redaction
from config.settings import Settings
from relay.operator import preflight
from relay.operator.finding import FAIL, OK, WARN, Finding

#: No check takes longer, in seconds.
LIMIT: Final = 10.0
#: Time limits of what is asked, in seconds: below LIMIT, so that it can be said what was wrong.
ANSWER_SECONDS: Final = 4.0

_COLOURS: Final = {OK: "\x1b[32m", WARN: "\x1b[33m", FAIL: "\x1b[31m"}

Check = Callable[[Settings], Iterator[Finding]]


def run(
    summary: Callable[[Settings], str],
    local: Callable[[Settings], Iterable[Finding]],
    remote: Callable[[Settings], Sequence[tuple[str, Check]]],
) -> int:
    """Runs every check and prints what it found; the exit status: 0, 1 where something fails, 2 for wrong settings.

    `summary`: of settings that are right. `local`: what this machine has. `remote`: what it reaches, each with a name;
    all of it at the same time, in greenlets as a worker has them, over the connections that mail takes.
    """
    logging.disable(logging.CRITICAL)  # what is worth saying is said below
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        settings = preflight.load()
    except environment.WrongSettings as error:
        for line in str(error).splitlines():
            _show(Finding(FAIL, "settings", line))
        return 2
    _show(Finding(OK, "settings", summary(settings)))
    for line in environment.unknown():
        _show(Finding(WARN, "settings", line))
    findings = [*local(settings), *_gather(settings, remote(settings))]
    for finding in findings:
        _show(finding)
    return 1 if any(finding.level == FAIL for finding in findings) else 0


def _show(finding: Finding) -> None:
    """Prints one line."""
    level = f"{finding.level:<4}"
    if os.isatty(1) and not os.environ.get("NO_COLOR"):
        level = f"{_COLOURS[finding.level]}{level}\x1b[0m"
    sys.stdout.write(f"{level}  {finding.part:<12} {finding.text}\n")
    sys.stdout.flush()


def _gather(settings: Settings, parts: Sequence[tuple[str, Check]]) -> list[Finding]:
    """What the checks find, each within LIMIT."""
    greenlets = [gevent.spawn(_collect, part, check, settings) for part, check in parts]
    gevent.joinall(greenlets, timeout=LIMIT)
    found: list[Finding] = []
    for (part, _), greenlet in zip(parts, greenlets, strict=True):
        hanging = [Finding(WARN if part == "redis" else FAIL, part, f"no answer within {LIMIT:.0f} s")]
        found += greenlet.value or hanging
    return found


def _collect(part: str, check: Check, settings: Settings) -> list[Finding]:
    try:
        return list(check(settings))
    except Exception as error:  # noqa: BLE001 - its text may hold anything, its type and place don't
        return [Finding(FAIL, part, f"an error that was not foreseen: {redaction.summary(error)}")]
