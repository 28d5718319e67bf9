"""The HTTP application: what is answered to which request, without a server."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from relay.web.application import Application
from relay.web.http_clients import ForwardedFor
from relay.web.responses import Response, text


class _Tracking:
    def answer(self, *_: Any) -> Response:
        raise RuntimeError("a secret")


class _Notifications:
    def answer(self, environ: dict[str, Any]) -> Response:
        return text("ses", "200 OK", "ok")


APPLICATION = Application(_Tracking(), _Notifications(), ForwardedFor(None))  # type: ignore[arg-type]


def asked(method: str, path: str) -> tuple[str, bytes]:
    said = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "REMOTE_ADDR": "192.0.2.1"}
    body = APPLICATION(environ, lambda status, headers: said.append(status))
    return said[0], b"".join(body)


def test_an_unknown_error_is_said_to_pass() -> None:
    with structlog.testing.capture_logs() as logged:
        assert asked("GET", "/api/track/click/x") == ("503 Service Unavailable", b"Try again later\n")
    assert [line["event"] for line in logged] == ["request_failed"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/events/ses", "200"),
        ("GET", "/events/ses", "404"),
        ("HEAD", "/events/ses", "404"),
        ("POST", "/api/track/click/x", "404"),
        ("GET", "/api/track/x/x", "404"),
        ("GET", "", "404"),
        ("GET", "*", "404"),
    ],
)
def test_which_url_is_whose(method: str, path: str, status: str) -> None:
    assert asked(method, path)[0].startswith(status)
