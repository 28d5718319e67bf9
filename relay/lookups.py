"""Cache-aside, in one place: asks Redis, then Postgres, and writes back what it learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from relay.cache import Cache
from relay.claims import Claim, Holder
from relay.records import ApiKey
from relay.store import Store


@dataclass(frozen=True, slots=True)
class Screening:
    """What is known about one message just before it is stored."""

    #: The key as it is now; None: revoked, the message must be refused. Nothing is claimed then.
    key: ApiKey | None
    #: Recipients (comparison form) that must not get mail → reason. Not empty: nothing is claimed.
    suppressed: Mapping[str, str]
    #: Recipients that another transaction of the same message has claimed before. All others are claimed by this one.
    held: Mapping[str, Holder]


class Lookups:
    """What the accept path asks. Right without Redis, only slower; raises Unavailable("postgres") where Postgres is
    needed and silent."""

    def __init__(self, store: Store, cache: Cache) -> None: ...

    def api_key(self, token_hash: str) -> ApiKey | None:
        """The key for AUTH, or None: unknown, or without a user."""
        raise NotImplementedError

    def screen(
        self,
        token_hash: str,
        user_id: str,
        recipients: Collection[str],
        *,
        claim: Claim | None = None,
        intents: Sequence[str] = (),
        certain: bool = False,
    ) -> Screening:
        """One round trip: is the key still good, is any recipient suppressed, has anyone got this message already.

        `recipients` in comparison form. `intents`: ids of the rows that will need a job (empty in polling mode).
        `certain`: ask Postgres about recipients that the cache knows nothing about. Otherwise that is left to
        `Store.insert`, whose statement asks the same at no extra round trip (an outcome `Suppressed`).
        """
        raise NotImplementedError

    def take_over(self, claim: Claim, stale: Mapping[str, Holder]) -> dict[str, Holder]:
        """Claims recipients whose holders came to nothing (their row is not in Postgres). Returns those that somebody else
        took over first."""
        raise NotImplementedError

    def release(self, claim: Claim | None, recipients: Collection[str], intents: Sequence[str] = ()) -> None:
        """Gives claims and intents back: the rows were definitely not stored."""
        raise NotImplementedError

    def learned(self, user_id: str, suppressed: Mapping[str, str]) -> None:
        """Remembers what `Store.insert` found out about recipients."""
        raise NotImplementedError

    def used(self, key: ApiKey) -> None:
        """Notes that a key was used; last_used_at follows within seconds, at most once a minute a key. Never blocks."""
        raise NotImplementedError
