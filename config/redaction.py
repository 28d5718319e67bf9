"""Saying what went wrong without saying what it went wrong with.

The text of an exception can hold whatever its code had in hand: psycopg2 quotes the row, the email package the header.
So a log line or an error report gets its type, its code where it has one, and where it was raised; never the text, but
for a few types whose text is about our own source alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Final

#: Their texts name modules, attributes and parameters.
_SPEAK_OF_SOURCE: Final = (ImportError, AttributeError, NameError, SyntaxError)

#: The innermost frames say the most.
MAX_FRAMES: Final = 30


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, what caused that (`raise … from`, or raised while handling)."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def detail(error: BaseException) -> str:
    """What may be said of this one beside its type, or '': SQLSTATE, errno, the code of an AWS error, a service."""
    sqlstate = getattr(error, "pgcode", None)
    if isinstance(sqlstate, str):
        return sqlstate
    service = getattr(error, "service", None)
    if isinstance(service, str):
        return service
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return errno.errorcode.get(error.errno, str(error.errno))
    if isinstance(error, _SPEAK_OF_SOURCE):
        return str(error)
    response = getattr(error, "response", None)
    if isinstance(response, dict) and isinstance(response.get("Error"), dict):
        return str(response["Error"].get("Code", ""))[:100]
    return ""


def summary(error: BaseException) -> str:
    """One line: `relay.core.errors.PostgresUnavailable(postgres) from psycopg2.OperationalError(57P01)`."""
    return " from ".join(_name(link) for link in chain(error))


def _name(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    more = detail(error)
    return f"{name}({more})" if more else name


def frames(traceback: TracebackType | None) -> list[str]:
    """Where it was raised, outermost first: `relay/postgres/store.py:120 insert`. No source lines, no variables."""
    found: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found.append(f"{_short(code.co_filename)}:{traceback.tb_lineno} {code.co_qualname}")
        traceback = traceback.tb_next
    return found[-MAX_FRAMES:]


def _short(path: str) -> str:
    """The last three parts: enough to find the file, nothing of the machine's folders."""
    return "/".join(path.split(os.sep)[-3:])
