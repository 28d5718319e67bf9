"""The IP address of one client, for the lines of the log that may name it (SMTP_RELAY_LOG_CLIENT_ADDRESSES).

It is the address that the relay trusts: the socket's, or the one that a trusted proxy names. The address of a proxy is
never written, because a program that reads the log and blocks addresses would block all clients behind it.
"""

from __future__ import annotations

from typing import Literal

_MAPPED = "::ffff:"


class LoggedAddress:
    """What lines about one client say of its address."""

    __slots__ = ("_address", "_which")

    def __init__(self, address: str | None, which: Literal["failures", "all", "none"]) -> None:
        """`address`: IPv4 or IPv6, as the system writes it; None where it is not known. `which`: the setting."""
        self._address = address
        self._which = which

    @property
    def always(self) -> dict[str, str]:
        """The fields of each line about the client."""
        address = _plain(self._address) if self._which == "all" else None
        return {} if address is None else {"client": address}

    def of_failure(self) -> str | None:
        """The address, for a line about something that was refused or failed."""
        return None if self._which == "none" else _plain(self._address)

    def fields_of_failure(self) -> dict[str, str]:
        """The fields of such a line."""
        address = self.of_failure()
        return {} if address is None else {"client": address}


def _plain(address: str | None) -> str | None:
    """IPv4 within IPv6 as IPv4, and IPv6 without a zone, which is of this machine and no part of the address."""
    if address is None or ":" not in address:
        return address
    if address.startswith(_MAPPED) and "." in address:
        return address.removeprefix(_MAPPED)
    return address.partition("%")[0]
