"""All SQL of the accept path (contract section 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from relay.commits import Outcome
from relay.records import ApiKey, EmailRow


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as Postgres has it: for use, and as the shared cache entry of contract section 4 holds it."""

    key: ApiKey
    #: The raw column: a domain name, the uuid of a domain, or nothing.
    domain_column: str | None


class Store:
    """Postgres. One per process, made before or after a fork; connects when first used.

    Every method raises Unavailable("postgres") within `deadline` seconds when Postgres does not answer, and works again
    by itself once it does.
    """

    def __init__(
        self,
        database_url: str,
        *,
        deadline: float = 4.5,
        writers: int = 2,
        readers: int = 4,
        max_batch_rows: int = 200,
        max_batch_bytes: int = 4_000_000,
    ) -> None: ...

    def find_api_key(self, token_hash: str) -> KeyRecord | None:
        """The key with this lower-case hex SHA-256, or None: no such row, or one without a user."""
        raise NotImplementedError

    def find_domain_name(self, user_id: str, domain_id: str) -> str | None:
        """The name of the domain with this uuid, if it is that user's; lower-case A-labels."""
        raise NotImplementedError

    def find_suppressions(self, user_id: str, emails: Collection[str]) -> dict[str, str]:
        """Which of these addresses (comparison form) are suppressed for this user: address → reason."""
        raise NotImplementedError

    def insert(self, rows: Sequence[EmailRow], recipients: Collection[str]) -> Outcome:
        """Commits the rows of one message together, or none. `recipients`: all of the message's, comparison form.

        Only the first row's idempotency key is stored: it stands for the whole message.
        Raises Unavailable: with `unclear` set the rows may have been committed.
        """
        raise NotImplementedError

    def rows_exist(self, ids: Collection[str]) -> set[str]:
        """Which of these emails exist."""
        raise NotImplementedError

    def queued(self, ids: Collection[str]) -> set[str]:
        """Which of these emails exist and wait for delivery."""
        raise NotImplementedError

    def overdue(
        self, older_than: timedelta, limit: int, after: tuple[datetime, str] | None = None
    ) -> list[tuple[datetime, str]]:
        """Emails that were never attempted and have waited for so long: (created_at, id), oldest first, after `after`."""
        raise NotImplementedError

    def touch_api_keys(self, ids: Collection[str]) -> None:
        """Sets last_used_at of these keys, where it is more than a minute ago."""
        raise NotImplementedError

    def record_suppressed(self, user_id: str, payload: Mapping[str, Any]) -> None:
        """Records an event `suppressed` and a pending delivery for each webhook that wants it (contract section 3)."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes every connection. What still waits in `insert` is Unavailable."""
        raise NotImplementedError

    def api_keys(self, *, user_id: str | None, active_within: timedelta | None) -> Iterator[tuple[str, KeyRecord]]:
        """Every key that may authenticate, as (token_hash, record), streamed."""
        raise NotImplementedError
