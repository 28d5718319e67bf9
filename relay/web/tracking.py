"""Tracked links: where they lead to, and what is recorded when they are followed (contract section 7)."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import gevent
import orjson

from relay.core import metrics
from relay.core.ids import new_email_id
from relay.core.tracking_token import Tracked, TrackingTokens
from relay.postgres.events import Events
from relay.web.event_writer import EventWriter
from relay.web.location import location_of
from relay.web.responses import NOT_FOUND, NOT_KEPT, Environ, Response

#: How long a click waits for its event to be committed: a process that is killed meanwhile has lost it; seconds. It is
#: redirected in any case, and no click waits while Postgres is known to be away.
WAIT_SECONDS: Final = 0.25
#: Characters of a User-Agent that are recorded, and of a recipient (contract section 3).
_MOST_USER_AGENT: Final = 1000
_MOST_RECIPIENT: Final = 512
#: A transparent image of one pixel, as GIF89a.
PIXEL: Final = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
_IMAGE: Final = Response("open", status="200 OK", body=PIXEL, headers=(("Content-Type", "image/gif"), *NOT_KEPT))
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_EVENT_TYPES: Final = {"open": "email.opened", "click": "email.clicked"}


class Tracking:
    """Serves tracked links."""

    def __init__(self, secret: str | None, writer: EventWriter[bool]) -> None:
        """`secret`: TRACKING_SECRET; None: no token is one of ours."""
        self._tokens = None if secret is None else TrackingTokens(secret)
        self._writer = writer

    def answer(self, kind: str, token: str, environ: Environ, client: str) -> Response:
        """The response to a request for a link: 302 to where it leads, the image, or 404 and never a redirect.

        `kind`: `open` or `click`. `client`: the address of the client.
        """
        tracked = None if self._tokens is None else self._tokens.verify(token)
        if tracked is None or tracked.kind != kind:
            return NOT_FOUND
        response = _IMAGE
        if tracked.target is not None:
            location = location_of(tracked.target)
            if location is None:
                return NOT_FOUND
            response = Response("click", status="302 Found", body=b"", headers=(("Location", location), *NOT_KEPT))
        if environ["REQUEST_METHOD"] == "GET":
            self._record(tracked, environ.get("HTTP_USER_AGENT"), client)
        return response

    def _record(self, tracked: Tracked, user_agent: str | None, client: str) -> None:
        """Returns when the event is committed or kept, or WAIT_SECONDS later; then it is in memory yet."""
        if not _UUID.fullmatch(tracked.email_id) or not _UUID.fullmatch(tracked.domain_id):
            kind = _EVENT_TYPES[tracked.kind].removeprefix("email.")
            metrics.TRACKING_EVENTS.labels(kind, "not_recorded").inc()
            return
        done = self._writer.put(document_of(tracked, user_agent, client))
        if not self._writer.away:
            with gevent.Timeout(WAIT_SECONDS, False):  # type: ignore[arg-type]  # gevent: no exception
                done.get()


def document_of(tracked: Tracked, user_agent: str | None, client: str) -> bytes:
    """The event as `relay.postgres.events.Events.write_tracking` takes it. `user_agent`: as WSGI has it, in Latin-1."""
    email_id, domain_id = storable(tracked.email_id), storable(tracked.domain_id)
    payload: dict[str, str | None] = {
        "email_id": email_id,
        "domain_id": domain_id,
        "recipient": None if tracked.recipient is None else storable(tracked.recipient)[:_MOST_RECIPIENT],
    }
    if tracked.target is not None:
        payload["url"] = storable(tracked.target)
    if user_agent is not None:
        user_agent = storable(user_agent.encode("latin-1", "replace").decode("utf-8", "replace"))[:_MOST_USER_AGENT]
    return orjson.dumps(
        {
            "id": new_email_id(),
            "type": _EVENT_TYPES[tracked.kind],
            "user_id": storable(tracked.user_id),
            "email_id": email_id,
            "domain_id": domain_id,
            "payload": {**payload, "user_agent": user_agent, "ip": client},
            "received_at": datetime.now(UTC).isoformat(),
        }
    )


def write(events: Events, documents: Sequence[bytes]) -> list[bool]:
    """Whether each of these events is recorded, once all of them have been written where that is to be."""
    recorded = events.write_tracking(documents)
    results = []
    for document in documents:
        event = orjson.loads(document)
        results.append(event["id"] in recorded)
        kind = event["type"].removeprefix("email.")
        metrics.TRACKING_EVENTS.labels(kind, "recorded" if results[-1] else "not_recorded").inc()
    return results


def storable(text: str) -> str:
    """A text that Postgres takes: replacement characters for NUL, question marks for halves of surrogate pairs."""
    if "\0" not in text and text.isascii():
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
