"""One round of the sweep over all intents, however young, in a process that is patched as a worker is."""

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - nothing may be imported before the standard library is patched

import os
from datetime import timedelta

from psycogreen.gevent import patch_psycopg

patch_psycopg()

import gevent

from relay.aws.sqs import Queue
from relay.jobs.intents import Intents
from relay.jobs.sender import JobSender
from relay.jobs.sweep import Sweep
from relay.postgres.store import Store
from relay.redis.cache import Cache


def main() -> None:
    """Sweeps what SWEEP_DATABASE, SWEEP_REDIS and SWEEP_QUEUE name."""
    cache = Cache(os.environ["SWEEP_REDIS"], timeout=5.0)
    cache.ping()
    store = Store(os.environ["SWEEP_DATABASE"])
    sender = JobSender(Queue(os.environ["SWEEP_QUEUE"], os.environ["AWS_REGION"]))
    intents = Intents(cache.link)
    # The process that held the lock may have been killed, and it would take a minute to run out.
    cache.link.call("DEL", "smtp-relay:jobs:sweep", "smtp-relay:jobs:remind")
    sweep = Sweep(sender, store, intents)
    sweep.forgotten_after = 0.0
    while sweep.publish_forgotten():
        gevent.sleep(0)
    if os.environ["SWEEP_REMIND"]:
        sweep.overdue_after = timedelta(0)
        sweep.reminders_per_second = 1000.0
        sweep.remind()
    store.close()
    gevent.sleep(0.1)  # what was posted has left
    cache.close()


if __name__ == "__main__":
    main()
