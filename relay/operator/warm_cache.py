"""`opensend-relay warm-cache`: fills Redis with API keys and suppressions, before a deploy or after a flush."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from enum import IntEnum
from typing import Annotated, NoReturn

import structlog
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from config import environment
from relay.core.errors import Unavailable
from relay.operator import preflight
from relay.operator.outbox import RedisFailed
from relay.operator.warming import LIST_SECONDS, Selection, Summary, Warming
from relay.postgres.causes import postgres_cause
from relay.postgres.snapshot import Snapshot
from relay.redis.cache import Cache

#: Seconds between two lines of progress where there is no terminal.
LINE_INTERVAL = 10.0
#: Redis may take longer here than in the relay, where a client waits for a reply.
REDIS_TIMEOUT = 10.0

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Exit(IntEnum):
    """How the run ended."""

    DONE = 0
    FAILED = 1
    WRONG = 2
    INTERRUPTED = 130


EPILOG = (
    "Exit status: 0 done; 1 Postgres or Redis failed; 2 wrong option or setting; 130 interrupted. "
    "Whichever it is, what Redis holds is consistent, and the run can be repeated at any time: "
    "a user's list takes effect when it is complete, and half-written ones expire. "
    "Keys are cached for 60 seconds, as OpenSend demands, so warm them right before the traffic comes. "
    "Lists of suppressions stay right while they age: added addresses are found by the INSERT, "
    "removed ones by asking Postgres again."
)


def main(arguments: Sequence[str], program: str) -> NoReturn:
    """Does what the arguments ask for, and ends the process with an `Exit`. `program`: how it is started."""
    application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    application.command(epilog=EPILOG)(warm)
    raise SystemExit(application(list(arguments), prog_name=program))


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `12h`, `7d` or `2w`."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    if match is None:
        raise typer.BadParameter("should be a number and a unit, like 90s, 15m, 12h, 7d or 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


def warm(
    *,
    user: Annotated[str | None, typer.Option(help="Only the entries of this user id.")] = None,
    active_within: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="Only keys used within this time, e.g. 7d."),
    ] = None,
    keys_only: Annotated[bool, typer.Option("--keys-only", help="No suppressions.")] = False,
    suppressions_only: Annotated[bool, typer.Option("--suppressions-only", help="No API keys.")] = False,
    ttl: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="How long lists of suppressions are used. Default: 1d."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1, metavar="N", help="At most N entries a second. Default: no limit.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Fills Redis with API keys and suppressions from Postgres, before a deploy or after a flush."""
    if keys_only and suppressions_only:
        raise typer.BadParameter("--keys-only and --suppressions-only leave nothing to do")
    list_seconds = LIST_SECONDS if ttl is None else int(ttl.total_seconds())
    if list_seconds < 1:
        raise typer.BadParameter("should be at least 1s", param_hint="--ttl")
    selection = Selection(
        keys=not suppressions_only,
        suppressions=not keys_only,
        user_id=user,
        active_within=active_within,
        list_seconds=list_seconds,
        rate=rate,
        dry_run=dry_run,
    )
    raise typer.Exit(run(selection, as_json=as_json))


def run(selection: Selection, *, as_json: bool) -> Exit:
    """Warms, shows how it goes, and says what became of it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # errors are printed below, once
    try:
        settings = preflight.load()
    except environment.WrongSettings as error:
        return complain(str(error), Exit.WRONG)
    if settings.redis_url is None:
        return complain("REDIS_URL is not set: should be the URL of the Redis that is to be warmed", Exit.WRONG)
    cache = Cache(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=REDIS_TIMEOUT)
    warming: Warming | None = None
    status, unknown_user = Exit.DONE, False
    try:
        with Snapshot(settings.database_url) as snapshot, progress_shown() as show:
            warming = Warming(snapshot, cache, selection, show)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stopper(warming))
            warming.run()
            status = Exit.INTERRUPTED if warming.summary.interrupted else Exit.DONE
            found = warming.summary.keys or warming.summary.suppressions
            unknown_user = selection.user_id is not None and not found and status is Exit.DONE
            if unknown_user:
                status = complain("nothing is stored of a user with this id: no API key, no suppression", Exit.FAILED)
    except Unavailable as unavailable:
        status = complain(f"Postgres failed (DATABASE_URL): {postgres_cause(unavailable.__cause__)}", Exit.FAILED)
    except RedisFailed as failed:
        status = complain(f"Redis failed (REDIS_URL): {failed}", Exit.FAILED)
    finally:
        cache.close()
    if warming is not None and (as_json or not unknown_user):
        tell(warming.summary, status, dry_run=selection.dry_run, as_json=as_json)
    return status


def stopper(warming: Warming) -> Callable[[int, object], None]:
    """The first signal ends the run in good order, the second at once."""

    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        warming.stop()

    return stop


@contextmanager
def progress_shown() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar with rate and time left on a terminal; else a line every ten seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lines()
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:>10}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, tuple[TaskID, float]] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = (progress.add_task(what, total=total, rate="–"), time.monotonic())
            task, started = tasks[what]
            elapsed = time.monotonic() - started
            progress.update(task, completed=done, rate=f"{done / elapsed:,.0f}" if elapsed > 0.2 else "–")

        yield show


def lines() -> Callable[[str, int, int], None]:
    """Progress as a line every ten seconds."""
    started = last = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_INTERVAL:
            last = now
            left = (total - done) * (now - started) / done if done else 0
            print(f"{what}: {done:,} of {total:,}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return show


def tell(summary: Summary, status: Exit, *, dry_run: bool, as_json: bool) -> None:
    """The last line, on standard output."""
    if as_json:
        document = asdict(summary) | {
            "seconds": round(summary.seconds, 3),
            "entries_per_second": round(summary.rate),
            "dry_run": dry_run,
            "exit_status": int(status),
        }
        print(json.dumps(document))
        return
    verb = {Exit.DONE: "Warmed", Exit.INTERRUPTED: "Interrupted after", Exit.FAILED: "Failed after"}[status]
    if dry_run and status is Exit.DONE:
        verb = "Would warm"
    print(
        f"{verb} {_counted(summary.keys, 'key')} and {_counted(summary.suppressions, 'suppression')}"
        f" of {_counted(summary.lists, 'user')}"
        f" in {summary.seconds:.1f} s ({summary.rate:,.0f} entries/s)."
    )


def _counted(number: int, noun: str) -> str:
    """`1 key`, `2 keys`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def complain(text: str, status: Exit) -> Exit:
    """Says on standard error what is wrong."""
    print(text, file=sys.stderr)
    return status
