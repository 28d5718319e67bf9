"""What it costs to compose a mail beside the yardstick's code for it: CPU time, without any server.

    python -m scripts.benchmark.composing [--rounds 100]

Tracked links, parts and transfer encodings of the mails of `scripts.benchmark.delivery`. Both take turns of some
hundredths of a second in one process on one core: the machine's speed changes more than what is measured here, and with
turns as short as these it changes for both.
"""

from __future__ import annotations

if not __package__:
    raise SystemExit("Run ./scripts/launch benchmark.composing instead.")

import argparse
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from statistics import median
from typing import Final, cast
from uuid import uuid4

from relay.delivery.compose import bodies_of
from relay.delivery.leaving import leaving
from relay.delivery.row import OutgoingAttachment, OutgoingEmail
from relay.delivery.tracking import Tracking
from relay.postgres.sending_facts import SendingDomain
from scripts.benchmark.delivery import SETTINGS, mails

_DOMAIN_ID: Final = "00000000-0000-4000-8000-000000000001"
#: Mails of one turn.
_TURN: Final = 20


def main() -> None:
    """Prints one line for each kind of mail."""
    arguments = argparse.ArgumentParser(prog="python -m scripts.benchmark.composing", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=100, help="turns of each (default: 100)")
    rounds = arguments.parse_args().rounds
    os.environ.update(SETTINGS)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'median of a mail':28} {'yardstick':>12} {'worker':>12} {'ratio':>7}")
    for name, columns in mails().items():
        both = {"yardstick": _yardstick(columns), "worker": _worker(columns)}
        taken: dict[str, list[float]] = {each: [] for each in both}
        for number in range(rounds):
            for each in list(both)[:: -1 if number % 2 else 1]:
                began = time.process_time()
                for _ in range(_TURN):
                    both[each]()
                taken[each].append((time.process_time() - began) / _TURN * 1e6)
        theirs, ours = median(taken["yardstick"]), median(taken["worker"])
        print(f"{name:28} {theirs:9.0f} µs {ours:9.0f} µs {ours / theirs:7.3f}", flush=True)


def _yardstick(columns: Mapping[str, object]) -> Callable[[], bytes]:
    # Its settings are read when it is imported.
    composed: Callable[..., bytes] = import_module("scripts.yardstick.sender")._composed
    row = {**columns, "id": str(uuid4()), "cc": None, "bcc": None, "created_at": datetime.now(UTC)}
    domain = {"id": _DOMAIN_ID, "track_clicks": True, "track_opens": True}
    return lambda: composed(row, domain)


def _worker(columns: Mapping[str, object]) -> Callable[[], bytes]:
    texts = cast("Mapping[str, str]", columns)
    attachments = cast("list[dict[str, str]]", columns["attachments"])
    email = OutgoingEmail(
        id=str(uuid4()),
        user_id=texts["user_id"],
        sender=texts["from"],
        to=cast("list[str]", columns["to"]),
        cc=(),
        bcc=(),
        reply_to=(),
        subject=texts["subject"],
        html=texts["html"],
        text=texts["text"],
        headers=cast("dict[str, str]", columns["headers"]),
        attachments=[OutgoingAttachment(**each, path=None, content_id=None) for each in attachments],
        retries=0,
        created_at=datetime.now(UTC),
    )
    tracking = Tracking(SETTINGS["TRACKING_SECRET"], SETTINGS["TRACKING_BASE_URL"])
    domain = SendingDomain(
        id=_DOMAIN_ID,
        region="us-east-1",
        configuration_set=None,
        track_clicks=True,
        track_opens=True,
        tracking_subdomain=None,
        name="shop.example",
    )
    return lambda: leaving(email, bodies_of(email), tracking, domain).octets


if __name__ == "__main__":
    main()
