"""Which URL is whose: the tracked links, SES's events; all else is 404.

Plain WSGI (PEP 3333): there are three routes, without converters, templates or sessions, and a framework would be paid
for with each click.
"""

from __future__ import annotations

from typing import Final, Protocol

import structlog

from relay.core import metrics
from relay.web.http_clients import ForwardedFor
from relay.web.responses import NOT_FOUND, Environ, Response, StartResponse, text
from relay.web.tracking import Tracking

log = structlog.get_logger(__name__)

_TRACKED: Final = "/api/track/"
_KINDS: Final = ("open", "click")
EVENTS_PATH: Final = "/events/ses"
_FAILED: Final = text("failed", "503 Service Unavailable", "Try again later")


class Notifications(Protocol):
    """What SES reports (`relay.web.notifications`)."""

    def answer(self, environ: Environ) -> Response:
        """The response to a message of SNS."""


class Application:
    """The WSGI application. None of its responses depends on anything but the URL, the method and the body."""

    def __init__(self, tracking: Tracking, notifications: Notifications, forwarded: ForwardedFor) -> None:
        self._tracking = tracking
        self._notifications = notifications
        self._forwarded = forwarded

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """One request (PEP 3333)."""
        try:
            response = self._answer(environ)
        except Exception:  # whatever it is, it is ours, and a client may come again
            log.exception("request_failed")
            response = _FAILED
        metrics.WEB_REQUESTS.labels(response.route, response.status[:3]).inc()
        start_response(response.status, response.fields())
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.body]

    def _answer(self, environ: Environ) -> Response:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith(_TRACKED) and method in ("GET", "HEAD"):
            kind, _, token = path[len(_TRACKED) :].partition("/")
            if kind in _KINDS:
                client = self._forwarded.client_of(environ["REMOTE_ADDR"], environ.get("HTTP_X_FORWARDED_FOR"))
                return self._tracking.answer(kind, token, environ, client)
        if path == EVENTS_PATH and method == "POST":
            return self._notifications.answer(environ)
        return NOT_FOUND
