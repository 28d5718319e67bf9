"""What the delivery worker does with Redis, done once, by the code and over a link as mail takes it.

Nothing stays: what is written is of a process that does not exist, and is deleted at the end.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Sequence
from typing import Final

from config.settings import Settings
from relay.core.errors import RedisUnavailable
from relay.operator import redis_operations
from relay.operator.finding import WARN, Finding
from relay.operator.redis_operations import Operation
from relay.redis import keys, webhook_wakes
from relay.redis.claim_states import CLAIMED, HANDING_OVER, ClaimStates, Note
from relay.redis.keys import PACE_PREFIX
from relay.redis.link import RedisLink
from relay.redis.shared_allowance import SharedAllowance

#: What is lost without Redis.
_LOST: Final = (
    "after a crash it is not known which mails the provider has; the rate is divided by SMTP_RELAY_PACE_SHARES"
)


def findings(settings: Settings, *, timeout: float) -> Iterator[Finding]:
    """What is wrong, a line for each operation; or one that says that nothing is. `timeout`: seconds for one reply."""
    if settings.redis_url is None:
        yield Finding(WARN, "redis", f"REDIS_URL is not set: {_LOST}")
        return
    link = RedisLink(settings.redis_url, verify_tls=settings.redis_tls_verify, timeout=timeout, pause=1.0)
    probe = _WorkersUse(link)
    try:
        yield from redis_operations.findings(link, probe.operations(), away=_LOST)
    finally:
        probe.clean_up()
        link.close()


class _WorkersUse:
    """All operations of one run."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._states = ClaimStates(link)
        self._account = f"check:{secrets.token_hex(16)}"
        self._owners = [f"check:{secrets.token_hex(16)}:{number}" for number in range(2)]

    def operations(self) -> Sequence[Operation]:
        """All of them, in their order."""
        return (
            Operation("INFO", "after a failover each claim would count as uncertain", self._info),
            Operation("claims", _LOST, self._claims),
            Operation("a worker's end", "its claims would be left until their lease is over", self._end),
            Operation("pace", "each process would have its share of the account's rate", self._pace),
            Operation("words about webhooks", "deliveries of webhooks would come a second later", self._wakes),
        )

    def _info(self) -> bool:
        return b"run_id:" in bytes(self._link.call("INFO", "server"))

    def _claims(self) -> bool:
        """A process claims two mails, hands one of them over and ends; what it has left is found."""
        owner = self._owners[0]
        kept, given = (_note(state) for state in (CLAIMED, HANDING_OVER))
        if self._states.beat(owner, first=True) is None or owner not in self._states.owners():
            return False
        self._states.post(owner, kept)
        gone = _note(CLAIMED)
        self._states.post(owner, gone)
        self._states.post_end(owner, gone.email_id)
        handed_over = self._states.hand_over(owner, given)
        held = self._states.held({kept.email_id: kept.mark, gone.email_id: gone.mark})
        left = self._states.take(owner, ended=True)
        self._states.done(owner, [kept.email_id, given.email_id], whole=True)
        return handed_over and held == {kept.email_id} and left is not None and set(left.notes) == {kept, given}

    def _end(self) -> bool:
        owner = self._owners[1]
        beats = self._states.beat(owner, first=True) is not None
        self._states.retire(owner)
        return beats and owner not in self._states.owners()

    def _pace(self) -> bool:
        allowance = SharedAllowance(self._link, self._account, fallback=1.0, shares=1)
        allowance.learn(1.0, 10, "")
        granted = allowance.reserve([1], passed=0, throttled=0)
        waits = allowance.wait_for_octets(1)
        rests = allowance.rest("check", 1.0, 1.0)
        allowance.resume()
        self._link.call("DEL", PACE_PREFIX + self._account.encode())
        return granted.rate > 0 and waits >= 0 and rests > 0

    def _wakes(self) -> bool:
        """A worker that listens may take the word: it looks for deliveries then, which is harmless."""
        webhook_wakes.post(self._link)
        self._link.call("BLPOP", keys.WEBHOOK_WAKES_KEY, "0.1")
        return True

    def clean_up(self) -> None:
        """Deletes what an operation that failed has left."""
        self._link.post([("DEL", PACE_PREFIX + self._account.encode())])
        for owner in self._owners:
            try:
                self._states.retire(owner)
                self._states.done(owner, (), whole=True)
            except RedisUnavailable:
                return  # it expires, as what an ended process has left does


def _note(state: str) -> Note:
    return Note(email_id=str(uuid.uuid4()), state=state, mark=1, records_sent=False, message_id="")
