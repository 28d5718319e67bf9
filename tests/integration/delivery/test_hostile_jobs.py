"""Jobs that an enemy has put on the queue: whatever is taken for a job is one that Postgres takes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from relay.delivery.queue_jobs import DISPATCH, SEND, job_of
from relay.postgres.database import Database
from relay.postgres.outgoing import Outgoing
from relay.postgres.webhook_deliveries import WebhookDeliveries

#: Times as Python may read them and Postgres may not.
TIMES = (
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59",
    "2026-11-27T10:00:00+15:59:59.999999",
    "2026-11-27T10:00:00-16:00",
    "2026-11-27T10:00:00.123+00:00:00.5",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "20261127T100000Z",
    "2026-W48-5T10:00:00+01:00",
    "infinity",
    "now",
    "",
)


def ids(chance: random.Random, known: str) -> list[str]:
    """The row's id, and what is none for Postgres, or names it otherwise."""
    digits = known.replace("-", "")
    places = sorted(chance.sample(range(33), 4), reverse=True)
    moved = digits
    for place in places:
        moved = moved[:place] + "-" + moved[place:]
    fours = "-".join(digits[place : place + 4] for place in range(0, 32, 4))
    return [known, known.upper(), moved, fours, digits, f"{{{known}}}", f" {known}", known[:-1] + "g", known[:-1] + "٣"]


def test_what_is_taken_for_a_job_is_taken_by_postgres(
    add_email: Callable[..., str], outgoing: Outgoing, database: Database
) -> None:
    """Where the server refused it, it would come back, again and again; where not, the row would be found by it."""
    chance = random.Random(1)
    webhooks = WebhookDeliveries(database)
    for _ in range(6):
        known = add_email()
        claimed = 0
        # In any order: each form of the id has to claim the row where it comes first.
        texts = ids(chance, known)
        chance.shuffle(texts)
        for text in texts:
            job = job_of(json.dumps({"type": SEND, "emailId": text}))
            assert job is None or job.kind == SEND
            claimed += 0 if job is None else len(outgoing.claim_one(job.row_id))
        assert claimed == 1
        for text, time in ((text, time) for text in ids(chance, known) for time in TIMES):
            body = {"type": DISPATCH, "deliveryId": text, "source": "manual", "requestedAt": time}
            job = job_of(json.dumps(body))
            if job is not None:
                webhooks.retry(job.row_id, job.requested)
