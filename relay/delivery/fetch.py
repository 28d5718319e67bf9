"""Fetching what the `path` of an attachment names (contract section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.delivery.outbound_http import Outbound, UnavailableError

#: Seconds for the whole of it.
FETCH_SECONDS: Final = 10.0


def fetch(url: str, most: int, write: Callable[[bytes], None], outbound: Outbound) -> None:
    """Gives the content of a GET to `write`, at most `most` octets. Raises RefusedUrlError, UnavailableError, and what
    `write` raises.

    A redirect is an error, like every status but 200: it could lead anywhere.
    """
    left = most

    def receive(status: int, octets: bytes) -> bool:
        nonlocal left
        left -= len(octets)
        if status == 200:
            if left < 0:
                raise UnavailableError("TooLarge")
            write(octets)
        return status == 200

    fields = {"User-Agent": "opensend-relay", "Accept": "*/*", "Accept-Encoding": "identity"}
    status = outbound.request("GET", url, fields, None, receive=receive, seconds=FETCH_SECONDS)
    if status != 200:
        raise UnavailableError(f"HTTP{status}")
