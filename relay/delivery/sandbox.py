"""Addresses at `resend.dev` for tests: what would happen to a mail is simulated, and nothing is sent (contract 6)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from relay.core.frozen import frozen
from relay.delivery.row import OutgoingEmail
from relay.postgres.sent_rows import Event

PROVIDER: Final = "opensend-sandbox"
_ADDRESS: Final = re.compile(
    r"(?:(delivered|bounced|complained)(?:\+[^@]*)?|(suppressed))@resend\.dev\Z", re.IGNORECASE
)


@frozen
class Simulation:
    """What is recorded for one mail: its last status, its events in order, and which addresses are suppressed for which
    reason."""

    status: str
    events: Sequence[Event]
    reason: str | None


def simulation_of(email: OutgoingEmail) -> Simulation | None:
    """The simulation of a mail whose recipients all name the same outcome; None for any other mail."""
    outcomes = {_outcome(address) for address in email.recipients}
    if len(outcomes) != 1:
        return None
    outcome = outcomes.pop()
    if outcome is None:
        return None
    details: dict[str, object] = {"sandbox": True, "provider": PROVIDER}
    to = list(email.to)
    match outcome:
        case "delivered":
            details["delivery"] = {"recipients": to, "timestamp": _now()}
        case "bounced":
            details |= {
                "bounceType": "Permanent",
                "bouncedRecipients": [
                    {
                        "emailAddress": address,
                        "diagnosticCode": "smtp; 550 5.1.1 (Unknown User)",
                        "status": "5.1.1",
                    }
                    for address in to
                ],
            }
        case "complained":
            details["complainedRecipients"] = [{"emailAddress": address} for address in to]
        case _:
            details |= {"recipients": to, "reason": "recipient_suppressed"}
            return Simulation(status="suppressed", events=(_event(email, "suppressed", details),), reason=None)
    sent = _event(email, "sent", {"sandbox": True, "provider": PROVIDER, "recipients": to})
    reason = outcome if outcome in ("bounced", "complained") else None
    return Simulation(status=outcome, events=(sent, _event(email, outcome, details)), reason=reason)


def _outcome(address: str) -> str | None:
    match = _ADDRESS.match(address.strip())
    return None if match is None else (match[1] or match[2]).lower()


def _event(email: OutgoingEmail, kind: str, payload: dict[str, object]) -> Event:
    return Event(type=kind, source_id=f"sandbox:{kind}:{email.id}", payload=payload)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
