"""Error reports to Sentry, where SENTRY_DSN is set: types, codes and places, nothing of any mail.

The client's integrations stay off. They would take what libraries log, the arguments of this process, local variables
and requests; here only `report` sends, and `scrub` passes on a fixed list of fields.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from config import redaction
from config.settings import Settings

if TYPE_CHECKING:
    import sentry_sdk.client
    from sentry_sdk.types import Event, Hint

#: The same report at most this often, in seconds: a database that is down makes thousands a minute.
REPEAT_AFTER: Final = 10.0

#: How long the end of a process may wait for reports on their way, in seconds.
FLUSH_SECONDS: Final = 2.0

_FIELDS: Final = frozenset(
    (
        "event_id",
        "timestamp",
        "level",
        "platform",
        "release",
        "environment",
        "server_name",
        "sdk",
        "logentry",
        "exception",
    )
)
_FRAME_FIELDS: Final = frozenset(("filename", "module", "function", "lineno", "in_app"))

_client: sentry_sdk.client.BaseClient | None = None
_last_sent: dict[str, float] = {}


def load() -> None:
    """Loads the library, for a process that others are forked from. Starts nothing."""
    import sentry_sdk.utils  # noqa: F401, PLC0415 - 7 MB, only where a DSN is set


def init(settings: Settings, version: str) -> None:
    """Makes this process's client; without SENTRY_DSN nothing, and the library is not even imported.

    It starts a thread: call it after the fork, and after gevent has patched threads. `version`: of the relay.
    """
    global _client  # noqa: PLW0603 - one client a process, as the library has it
    if settings.sentry_dsn is None:
        return
    import sentry_sdk  # noqa: PLC0415 - 7 MB, only where a DSN is set

    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        release=f"opensend-relay@{version}",
        server_name=settings.hostname,
        default_integrations=False,
        auto_enabling_integrations=False,
        include_local_variables=False,
        include_source_context=False,
        # send_default_pii is off by default, and deprecated: to name it is a warning.
        max_breadcrumbs=0,
        auto_session_tracking=False,
        send_client_reports=False,
        before_send=scrub,
        shutdown_timeout=0,
    )
    _client = sentry_sdk.get_client()


def report(event: str, *, error: BaseException | None) -> None:
    """Sends one report, unless the same was sent a moment ago. `event` is a fixed text of ours. Never blocks."""
    if _client is None:
        return
    kind = f"{event} {redaction.summary(error)}" if error else event
    now = time.monotonic()
    if now - _last_sent.get(kind, -REPEAT_AFTER) < REPEAT_AFTER:
        return
    if len(_last_sent) > 1000:
        _last_sent.clear()
    _last_sent[kind] = now
    _send(event, error)


def _send(event: str, error: BaseException | None) -> None:
    import sentry_sdk  # noqa: PLC0415 - as in init()
    from sentry_sdk.utils import event_from_exception  # noqa: PLC0415

    details: Event = {}
    hint: Hint = {}
    if error is not None:
        details, hint = event_from_exception(error, client_options=sentry_sdk.get_client().options)
    details["level"] = "error"
    details["logentry"] = {"message": event}
    sentry_sdk.capture_event(details, hint)


def flush() -> None:
    """Waits for reports on their way, at most FLUSH_SECONDS. For the end of a process."""
    if _client is not None:
        _client.flush(timeout=FLUSH_SECONDS)


def scrub(event: Event, hint: Hint) -> Event:
    """Keeps the known harmless fields alone; the texts of exceptions become what `config.redaction` says of them."""
    document: dict[str, object] = {name: value for name, value in event.items() if name in _FIELDS}
    document["logentry"] = {"message": event.get("logentry", {}).get("message", "")}
    given = hint.get("exc_info")
    known = (
        {type(link).__name__: redaction.detail(link) for link in redaction.chain(given[1])}
        if given and given[1]
        else {}
    )
    values = event.get("exception", {}).get("values", [])
    document["exception"] = {"values": [_scrubbed(value, known) for value in values]}
    return document  # type: ignore[return-value]


def _scrubbed(exception: Mapping[str, object], known: Mapping[str, str]) -> dict[str, object]:
    stack = exception.get("stacktrace")
    frames = stack.get("frames", []) if isinstance(stack, dict) else []
    return {
        "type": exception.get("type"),
        "module": exception.get("module"),
        "value": known.get(str(exception.get("type")), ""),
        "stacktrace": {
            "frames": [{name: value for name, value in frame.items() if name in _FRAME_FIELDS} for frame in frames]
        },
    }
