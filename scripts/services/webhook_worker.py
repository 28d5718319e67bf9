"""A delivery process that reaches webhooks on 127.0.0.1: python -m scripts.services.webhook_worker CAFILE.

It is the process of `python -m relay.delivery` with another `Outbound`, by its constructor: nothing in the environment
lets a worker connect to this machine. Settings are those of the environment.
"""

if not __package__:
    raise SystemExit("Run ./scripts/launch services.webhook_worker instead.")

from relay.process import delivery

# ruff: noqa: I001 - the first import patches the standard library

import os
import sys

from config import environment
from relay.process.assignment import Assignment
from relay.process.handover import Handover
from relay.process.heartbeat import Heartbeats
from scripts.delivery_with_sink import to_sink


def main(arguments: list[str]) -> int:
    """The exit status."""
    settings = environment.load().to_json()
    delivery.load(settings)
    lifeline, _ = os.pipe()
    # There is no master: nothing was handed over but the settings.
    handed_over = Handover(f"1 25 json {len(settings)} ".encode(), settings, [-1])
    assignment = Assignment(
        0,
        handed_over,
        service=f"webhooks-{os.getpid()}",
        certificate=b"",
        lifeline=lifeline,
        heartbeats=Heartbeats(1),
        keeper=-1,
    )
    return delivery.run(assignment, outbound=to_sink(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
