"""Tracked links without a server: how what is recorded, or not, is counted."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest

from relay.core import metrics
from relay.core.tracking_token import TrackingTokens
from relay.postgres.events import Events
from relay.web import tracking
from relay.web.event_writer import EventWriter
from relay.web.tracking import Tracking

SECRET = "a secret of the tests"


class _RecordsNothing:
    """In the place of the rows."""

    def write_tracking(self, _documents: object) -> set[str]:
        return set()


@pytest.mark.parametrize(("kind", "label"), [("click", "clicked"), ("open", "opened")])
def test_an_event_that_is_not_recorded_has_one_label_whatever_the_reason(kind: str, label: str) -> None:
    counter = metrics.TRACKING_EVENTS.labels(label, "not_recorded")
    token: dict[str, object] = {"v": 1, "kind": kind, "userId": "u", "emailId": "none", "domainId": "none"}
    if kind == "click":
        token["targetUrl"] = "https://target.example/"
    before = counter.value
    links = Tracking(SECRET, cast(EventWriter[bool], None))
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET"}
    links.answer(kind, TrackingTokens(SECRET).make(token), environ, "192.0.2.1")
    tracking.write(cast(Events, _RecordsNothing()), [orjson.dumps({"id": "1", "type": f"email.{label}"})])
    assert counter.value == before + 2
