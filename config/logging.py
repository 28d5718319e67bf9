"""Logs: readable on a terminal, else one JSON object a line, on standard output, and nothing personal in either.

What a line must not hold is kept out by the code that writes it; `withhold` removes what was overlooked. Uncaught
errors and what libraries say through the standard library's logging come out in the same form.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import ClassVar, Final

import gevent
import gevent.monkey
import orjson
import structlog

from config import redaction, sentry
from config.line_output import append, has_room, write_line
from config.settings import Settings

_Line = MutableMapping[str, object]

#: Fields that no line may have: what they hold is a secret or part of a mail.
DANGEROUS: Final = frozenset(
    (
        "password",
        "passwd",
        "key",
        "api_key",
        "apikey",
        "token",
        "token_hash",
        "secret",
        "authorization",
        "credentials",
        "dsn",
        "url",
        "address",
        "addresses",
        "recipient",
        "recipients",
        "sender",
        "reverse_path",
        "forward_path",
        "mail_from",
        "rcpt_to",
        "from",
        "to",
        "cc",
        "bcc",
        "reply_to",
        "mailbox",
        "subject",
        "body",
        "text",
        "html",
        "content",
        "headers",
        "header",
        "data",
        "line",
        "command",
        "raw",
        "message",
        "attachment",
        "attachments",
        "filename",
        "settings",
        "environ",
        "peer",
        "socket",
    )
)
WITHHELD: Final = "[withheld]"
#: The field that names a client's IP address, where SMTP_RELAY_LOG_CLIENT_ADDRESSES says so. In no other field may an
#: IP address be, and in this one nothing else.
CLIENT: Final = "client"
_WATCHED: Final = DANGEROUS | {CLIENT}
#: What may be an IP address: four numbers with full stops, or up to eight groups with colons. `ipaddress` decides.
_NEAR_SEPARATORS: Final = re.compile(r"[.:][\da-fA-F]{0,4}[.:]")
_ADDRESS_FORM: Final = re.compile(
    r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)|(?<!\w)[\da-fA-F]{0,4}(?::[\da-fA-F]{0,4}){2,7}"
)

_JSON_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_NUMBERS: Final = frozenset((int, float, bool, type(None)))
#: How long all may stand still, once, for a reader of the log that has fallen behind; milliseconds.
_PATIENCE_MS: Final = 100
_LEVEL_OF_METHOD: Final = {"exception": "error", "warn": "warning", "fatal": "critical"}

log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


def configure(settings: Settings) -> None:
    """Sets up structlog, the standard library's logging, and what becomes of uncaught errors, for this process.

    Call it in the process that logs (after a fork, in the thread whose gevent hub serves); may be called again.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    last: list[structlog.typing.Processor]
    if settings.writes_json():
        last = [_to_json]
    else:
        colours = os.isatty(1) and not os.environ.get("NO_COLOR")
        last = [
            withhold,
            _printable,
            structlog.dev.ConsoleRenderer(
                colors=colours, sort_keys=False, pad_event_to=36, exception_formatter=structlog.dev.plain_traceback
            ),
            _to_octets,
        ]
    structlog.configure(
        # Few, and each with little to do for a line that is no error: one is written for every mail.
        processors=[_report, *last],
        wrapper_class=_logger_class(level),
        logger_factory=LineLogger,
        cache_logger_on_first_use=True,
    )
    LineLogger.look_at_outlet()
    _bridge_standard_logging()
    _catch_uncaught()


def _logger_class(level: int) -> type[structlog.typing.FilteringBoundLogger]:
    """structlog's own, with a shorter way through processors each of which hands a line to the next."""

    class Logger(structlog.make_filtering_bound_logger(level)):  # type: ignore[misc]
        def _proxy_to_logger(self, method_name: str, event: str, **fields: object) -> None:
            level = _LEVEL_OF_METHOD.get(method_name, method_name)
            line = {"timestamp": _now(), "level": level, "event": event, **self._context, **fields}
            for processor in self._processors:
                line = processor(None, method_name, line)
            self._logger.msg(line)

    return Logger


class LineLogger:
    """Writes each line with one write(), so that those of several processes don't mix.

    Their reader may be gone, or have stopped to read: mail goes on all the same.
    """

    #: Lines that could not be written.
    lost = 0
    #: How many of them a line has reported.
    _told: ClassVar[int] = 0
    #: Asks whether standard output takes a line now. None: it is a file, which says so when it is written to.
    _outlet: ClassVar[select.poll | None] = None
    _stopped = False

    def __init__(self, *_: object) -> None:
        pass

    @classmethod
    def look_at_outlet(cls) -> None:
        """Finds out what standard output is."""
        append()
        cls._outlet = None
        with contextlib.suppress(OSError):  # there is none
            if stat.S_ISREG(os.fstat(1).st_mode):
                return
            # gevent's own would let others run within a line.
            outlet: select.poll = gevent.monkey.get_original("select", "poll")()
            outlet.register(1, select.POLLOUT)
            cls._outlet = outlet

    def msg(self, line: bytes) -> None:
        """Writes one line, which ends in LF, to standard output."""
        outlet = self._outlet
        if (outlet is None or self._takes(outlet, line)) and write_line(line):
            if LineLogger.lost != LineLogger._told:
                self._tell()
        else:
            LineLogger.lost += 1

    @classmethod
    def _takes(cls, outlet: select.poll, line: bytes) -> bool:
        """Whether a line would be taken at once. Waits a moment for it, but not again for each line that comes."""
        if outlet.poll(0 if cls._stopped else _PATIENCE_MS) and has_room(len(line)):
            if cls._stopped:
                cls._stopped = False
                cls._tell()
            return True
        cls._stopped = True
        return False

    @classmethod
    def _tell(cls) -> None:
        """Says how many lines were lost since this was said last, now that there is room for it."""
        count, cls._told = cls.lost - cls._told, cls.lost
        log.warning("log_lines_lost", count=count)


# From a line's fields to its octets.


def _now() -> str:
    """ISO 8601 in UTC, to the millisecond."""
    now = time.time()
    second = int(now)
    return f"{_second_as_text(second)}.{int((now - second) * 1000):03}Z"


@lru_cache(maxsize=1)
def _second_as_text(second: int) -> str:
    """ISO 8601 in UTC, without a zone. The same for thousands of lines."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def withhold(_: object, __: str, line: _Line) -> _Line:
    """Replaces what must not be in a log: fields with one of those names, and values that hold an address or a key.

    Numbers stay: how many recipients there were is no secret. `client` may hold an IP address and nothing else.
    """
    for name, value in line.items():
        kind = type(value)
        if kind in _NUMBERS:
            continue
        text = value if isinstance(value, str) else repr(value)
        if name == CLIENT:
            withheld = not _is_address(text)
        else:
            withheld = name in DANGEROUS or _tells(text) or _names_address(text)
        if withheld:
            line[name] = WITHHELD
    return line


def _tells(text: str) -> bool:
    """Whether it holds what is in every mail address, or in every API key (contract section 1)."""
    return "@" in text or "os_live_" in text


def _names_address(text: str) -> bool:
    """Whether an IP address is in it."""
    # perf: next to no text has two separators so near: 5 µs instead of 28 for 250 characters: python -m timeit -s "from
    # config.logging import _names_address as names" "names('x' * 250)"
    return _NEAR_SEPARATORS.search(text) is not None and any(map(_is_address, _ADDRESS_FORM.findall(text)))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone may have any form


def _report(_: object, method: str, line: _Line) -> _Line:
    """Errors also go to Sentry, if there is one; but not those of libraries, which its own client is among.

    The report says which error it was without the error's text, which may be anything.
    """
    if method in ("error", "critical", "exception") and "logger" not in line:
        sentry.report(str(line["event"]), error=_error_of(line))
    if "exc_info" in line:
        error = _error_of(line)
        del line["exc_info"]
        if error is not None:
            line["error"] = redaction.summary(error)
            line["traceback"] = redaction.frames(error.__traceback__)
    return line


def _error_of(line: _Line) -> BaseException | None:
    given = line.get("exc_info")
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        error: BaseException | None = given[1]
        return error
    return sys.exc_info()[1] if given else None


def _to_json(_: object, method: str, line: _Line) -> bytes:
    octets = _as_json(line)
    # To look at the octets takes a third of the time of looking at each field, which next to no line needs.
    text = octets.decode()
    # perf: the line of an accepted mail is not searched for IP addresses: 5 µs, see _names_address
    if _WATCHED.isdisjoint(line) and not _tells(text) and (method == "info" or not _names_address(text)):
        return octets
    return _as_json(withhold(None, method, line))


def _as_json(line: _Line) -> bytes:
    try:
        return orjson.dumps(line, default=_kind, option=_JSON_OPTIONS)
    except TypeError:
        # What orjson refuses (half a surrogate pair, a number of 65 bits) is no reason to lose the line, or the mail.
        return json.dumps(line, default=_kind, skipkeys=True).encode() + b"\n"


def _kind(unknown: object) -> str:
    """In place of a value without a JSON form, whose own text could say anything."""
    return type(unknown).__name__


def _printable(_: object, __: str, line: _Line) -> _Line:
    """So that no value forges a line or moves the cursor."""
    where = line.pop("traceback", None)
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            line[name] = ascii(value)
    if isinstance(where, list):
        line["exception"] = "".join(f"  {frame}\n" for frame in where).rstrip("\n")
    return line


def _to_octets(_: object, __: str, rendered: object) -> bytes:
    return str(rendered).encode("utf-8", "backslashreplace") + b"\n"


# What others say.


class _Bridge(logging.Handler):
    """What libraries log (boto3, redis, urllib3, gevent), as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # The template is the library's source, its arguments may be anything.
        detail = str(record.msg) if _tells(message) or _names_address(message) else message
        log.log(record.levelno, "library_message", logger=record.name, detail=detail, exc_info=record.exc_info)


def _bridge_standard_logging() -> None:
    root = logging.getLogger()
    root.handlers = [_Bridge()]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    # PLY warns of unused rules of flanker's grammar each time that it is imported.
    logging.getLogger("flanker").setLevel(logging.CRITICAL)
    # It writes a traceback each time that credentials can't be refreshed, and raises the same error.
    logging.getLogger("botocore").setLevel(logging.CRITICAL)


def _catch_uncaught() -> None:
    """Whatever escapes a greenlet, a thread, a destructor or the main program becomes a line and a report.

    gevent's own way is to print it with the greenlet's arguments: the socket and the peer's address.
    """
    hub = gevent.get_hub()
    hub.print_exception = _uncaught_in_greenlet  # type: ignore[method-assign,assignment]  # what gevent documents
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_value, "thread")
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_value, "destructor")


def _uncaught_in_greenlet(context: object, kind: object, error: BaseException | None, traceback: object) -> None:
    _log_uncaught(error, "greenlet")


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    _log_uncaught(error, "main")
    sentry.flush()  # it is the end of the process


def _log_uncaught(error: BaseException | None, where: str) -> None:
    log.critical("uncaught_error", where=where, exc_info=error)
