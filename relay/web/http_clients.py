"""Whose request it is: the address of the connection, or the one that a trusted proxy names in X-Forwarded-For."""

from __future__ import annotations

import ipaddress
from typing import Final

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Entries of the field that are looked at: the rest of a longer field is not read.
_MOST_ENTRIES: Final = 20


class ForwardedFor:
    """Accepts the field from proxies of certain networks alone."""

    def __init__(self, networks: str | None) -> None:
        """`networks`: as the setting has them. Raises ValueError."""
        self._networks: list[_Network] = [
            ipaddress.ip_network(network.strip()) for network in (networks or "").split(",") if network.strip()
        ]

    def trusts(self, address: str) -> bool:
        """Whether this is the address of such a proxy."""
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client_of(self, peer: str, field: str | None) -> str:
        """The client's address. `peer`: that of the connection; `field`: X-Forwarded-For, several of them joined.

        Each proxy adds its client at the end, so the field is read from there, for as long as the proxy that wrote the
        entry is trusted. A trusted proxy writes nothing but addresses.
        """
        client = peer
        if not field or not self.trusts(peer):
            return client
        for entry in reversed(field.split(",")[-_MOST_ENTRIES:]):
            parsed = _parsed(_without_port(entry.strip()))
            if parsed is None:
                break
            client = str(parsed)
            if not any(parsed in network for network in self._networks):
                break
        return client


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(entry: str) -> str:
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry
