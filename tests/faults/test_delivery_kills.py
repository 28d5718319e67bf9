"""Whatever kills a delivery worker: each mail is sent, and no copy leaves that was not called unclear."""

from __future__ import annotations

from pathlib import Path

from tests.faults.delivery_kills import kill_at_random
from tests.faults.delivery_stage import DeliveryStage


def test_kills_at_random_moments_lose_no_mail_and_send_none_twice_unasked(tmp_path: Path) -> None:
    """`./scripts/soak --only delivery-kills` is the long form, with servers that fail."""
    with DeliveryStage(tmp_path) as stage:
        outcome = kill_at_random(stage, 5, faults=False, seconds=60.0, patience=0.0)
        outcome.ledger.check()
        assert outcome.kills.total() >= 2, outcome
        assert outcome.ledger.statuses["failed"] == 0, outcome
        assert not [line for line in stage.log() if line.get("event") in ("greenlet_failed", "unexpected_error")]
