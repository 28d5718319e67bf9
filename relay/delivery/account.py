"""What a provider's account lets through, as far as it says so: SES's answer to GetAccount."""

from __future__ import annotations

import math
from collections.abc import Mapping

from relay.core.frozen import frozen


@frozen
class Account:
    """`rate`: recipients a second; 0.0: it does not say."""

    rate: float
    #: Recipients that are left of the last 24 hours; -1: no limit.
    left: int
    #: Why it takes no mail at all, one of `relay.delivery.outcome.KINDS`; empty: it does.
    off: str


#: An account that may not be asked.
UNTOLD = Account(rate=0.0, left=-1, off="")


def account_of(document: Mapping[str, object]) -> Account:
    """SES's answer. What is missing or makes no sense is as if it had not been said."""
    said = document.get("SendQuota")
    quota = said if isinstance(said, Mapping) else {}
    rate, most, sent = (_number(quota.get(name)) for name in ("MaxSendRate", "Max24HourSend", "SentLast24Hours"))
    off = ""
    if document.get("EnforcementStatus") == "SHUTDOWN":
        off = "suspended"
    elif document.get("SendingEnabled") is False:
        off = "paused"
    # -1 is no limit.
    left = -1 if most is None or most < 0 else max(0, int(most - (sent or 0.0)))
    return Account(rate=rate if rate is not None and rate > 0 else 0.0, left=left, off=off)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
