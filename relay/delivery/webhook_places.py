"""Which deliveries of webhooks may be made now: an endpoint that is slow, or does not answer, delays only itself.

Places are of two kinds. A call takes a fast one; where it lasts, or its endpoint was slow the last time or did not
answer, it has a slow one. So however many endpoints do not answer, there are places for the others, but for the first
second of each new one. An endpoint begins with few calls at a time, gets more with each quick answer, and one after a
call without an answer.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from relay.postgres.webhook_deliveries import Due

_Key = TypeVar("_Key", bound=Hashable)

#: Calls at a time: those that are quick, and those that are not.
FAST_PLACES: Final = 64
SLOW_PLACES: Final = 64
#: Of each kind, those that one user may have: the endpoints of one are no harm to the others.
USER_PLACES: Final = 48
#: Calls to one endpoint at a time: the most, and the first ones.
ENDPOINT_PLACES: Final = 16
_FIRST_PLACES: Final = 1
#: Seconds after which a call is a slow one.
SLOW_SECONDS: Final = 1.0
#: Endpoints whose last answers are remembered.
_REMEMBERED: Final = 10_000


@dataclass(slots=True)
class Call:
    """A delivery that is claimed and being made."""

    due: Due
    fast: bool
    #: By the monotonic clock.
    began: float


@dataclass(slots=True)
class _WebhookEndpoint:
    places: int = _FIRST_PLACES
    slow: bool = False


class WebhookPlaces:
    """What was seen to be due, and what is being made of it."""

    def __init__(self) -> None:
        #: By webhook. The next webhook in turn comes first.
        self._due: OrderedDict[str, deque[Due]] = OrderedDict()
        self._known: set[str] = set()
        self._calls: dict[str, Call] = {}
        #: How many of these are of each endpoint, of each kind, and of each kind and user.
        self._of_endpoint: Counter[str] = Counter()
        self._of_kind: Counter[bool] = Counter()
        self._of_user: Counter[tuple[bool, str | None]] = Counter()
        self._endpoints: OrderedDict[str, _WebhookEndpoint] = OrderedDict()

    def __len__(self) -> int:
        """How many are due."""
        return len(self._known)

    @property
    def busy(self) -> int:
        """How many calls there are."""
        return len(self._calls)

    def replace(self, due: Iterable[Due]) -> None:
        """What is due is this, and no more what it was."""
        self._due.clear()
        self._known.clear()
        self.add(due)

    def add(self, due: Iterable[Due]) -> None:
        """These are due as well, in this order."""
        for each in due:
            if each.delivery_id not in self._known and each.delivery_id not in self._calls:
                self._known.add(each.delivery_id)
                self._due.setdefault(each.webhook_id, deque()).append(each)

    def well_known(self, many: int) -> list[str]:
        """The webhooks of which so many are due."""
        return [webhook_id for webhook_id, waiting in self._due.items() if len(waiting) >= many]

    def wants_more(self, webhook_ids: Iterable[str]) -> bool:
        """Whether nothing is left of one of these webhooks, and it could have more calls."""
        return any(each not in self._due and self._room(each) > 0 for each in webhook_ids)

    def take(self) -> list[Due]:
        """Takes places for what may be made now, each webhook in turn."""
        self._move_slow()
        taken: list[Due] = []
        passed_over = 0
        while passed_over < len(self._due) and not self._is_full():
            webhook_id, waiting = next(iter(self._due.items()))
            self._due.move_to_end(webhook_id)
            if not self._may_take(waiting[0]):
                passed_over += 1
                continue
            passed_over = 0
            due = waiting.popleft()
            if not waiting:
                del self._due[webhook_id]
            self._known.discard(due.delivery_id)
            call = Call(due, fast=not self._endpoint(webhook_id).slow, began=time.monotonic())
            self._calls[due.delivery_id] = call
            self._count(call, 1)
            taken.append(due)
        return taken

    def give_back(self, delivery_id: str, *, quick: bool | None) -> None:
        """A call has ended. `quick`: whether its endpoint answered soon; None: nothing was learned of it."""
        call = self._calls.pop(delivery_id)
        self._count(call, -1)
        if quick is not None:
            endpoint = self._endpoint(call.due.webhook_id)
            endpoint.slow = not quick
            endpoint.places = min(ENDPOINT_PLACES, 2 * endpoint.places) if quick else 1

    def _may_take(self, due: Due) -> bool:
        if self._room(due.webhook_id) <= 0:
            return False
        fast = not self._endpoint(due.webhook_id).slow
        if self._of_kind[fast] >= (FAST_PLACES if fast else SLOW_PLACES):
            return False
        return self._of_user[fast, due.user_id] < USER_PLACES

    def _room(self, webhook_id: str) -> int:
        return self._endpoint(webhook_id).places - self._of_endpoint[webhook_id]

    def _is_full(self) -> bool:
        return self._of_kind[True] >= FAST_PLACES and self._of_kind[False] >= SLOW_PLACES

    def _move_slow(self) -> None:
        """Calls that last leave the places for quick ones, as long as there are others."""
        now = time.monotonic()
        for call in self._calls.values():
            if call.fast and now - call.began > SLOW_SECONDS and self._of_kind[False] < SLOW_PLACES:
                self._count(call, -1)
                call.fast = False
                self._count(call, 1)

    def _count(self, call: Call, by: int) -> None:
        _add(self._of_endpoint, call.due.webhook_id, by)
        _add(self._of_kind, call.fast, by)
        _add(self._of_user, (call.fast, call.due.user_id), by)

    def _endpoint(self, webhook_id: str) -> _WebhookEndpoint:
        found = self._endpoints.get(webhook_id)
        if found is None:
            found = self._endpoints[webhook_id] = _WebhookEndpoint()
            if len(self._endpoints) > _REMEMBERED:
                self._endpoints.popitem(last=False)
        else:
            self._endpoints.move_to_end(webhook_id)
        return found


def _add(counts: Counter[_Key], key: _Key, by: int) -> None:
    """Adds to a count. A count of 0 takes no memory."""
    counts[key] += by
    if not counts[key]:
        del counts[key]
