"""The reader of the log may stop: a collector that hangs, a terminal with Ctrl-S."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.database import query
from tests.faults.load import Fate, make_mail
from tests.faults.stage import Stage

#: Their lines are three times what a pipe holds.
MAILS = 800


def test_mail_is_accepted_while_the_log_is_not_read(
    stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = stage()
    ground.relay.stop()
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    command = ["sh", "-c", f'exec "$0" -m relay >{pipe}', sys.executable]
    monkeypatch.setattr(ground.relay, "command", lambda: command)
    ground.relay.start()
    with contextlib.closing(ground.talk()) as client:
        fates = {client.deliver(make_mail(number)).fate for number in range(MAILS)}
        before = _lines(reader)
        assert client.deliver(make_mail(MAILS)).fate is Fate.ACCEPTED
        after = _lines(reader)
    assert fates == {Fate.ACCEPTED}
    assert query(ground.database_url, "SELECT count(*) FROM emails") == [(MAILS + 1,)]
    told = sum(line["event"] == "message_accepted" for line in before)
    assert 0 < told < MAILS
    # Whole lines, the number of those that are missing, and those that came later.
    ours = [line for line in after if line["event"] in ("log_lines_lost", "message_accepted")]
    assert [line["event"] for line in ours] == ["log_lines_lost", "message_accepted"]
    assert ours[0]["count"] >= MAILS - told
    ground.relay.stop()
    os.close(reader)


def _lines(reader: int) -> list[dict[str, Any]]:
    octets = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reader, 1 << 20):
            octets += part
    return [json.loads(line) for line in octets.splitlines()]
