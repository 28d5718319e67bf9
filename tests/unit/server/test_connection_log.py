"""The lines of one connection: a message in several rows names them all."""

from __future__ import annotations

import pytest
import structlog.testing

from relay.server.connection_log import ConnectionLog
from relay.server.logged_address import LoggedAddress
from relay.server.summaries import Summaries
from relay.smtp import replies
from relay.smtp.submission import Verdict


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50, 51, 1000])
def test_a_message_in_several_rows_names_them_all(count: int) -> None:
    ids = [f"id-{number}" for number in range(count)]
    with structlog.testing.capture_logs() as lines:
        log = ConnectionLog("1-1", b"here", Summaries(), LoggedAddress("192.0.2.1", "failures"))
        log.message(Verdict(replies.queued("id-0"), "queued", "id-0", stored=tuple(ids)))
    accepted, *further = lines
    assert (accepted["event"], accepted["email"]) == ("message_accepted", "id-0")
    assert [email for line in further for email in line["emails"]] == (ids if count > 1 else [])
    assert all(line["event"] == "several_rows_stored" and len(line["emails"]) <= 50 for line in further)
    assert not any("client" in line for line in lines)
