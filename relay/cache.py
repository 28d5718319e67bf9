"""Redis, and what to do without it: it only makes a right answer faster (contract section 4)."""

from __future__ import annotations


class Cache:
    """One Redis or Valkey, or none. No method raises for Redis's sake: the answer is "don't know" then."""

    def __init__(
        self, url: str | None, *, verify_tls: bool = True, timeout: float = 0.1, pause: float = 1.0
    ) -> None: ...

    def ping(self) -> bool:
        """Whether Redis answers now."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes every connection."""
        raise NotImplementedError
